//! Packages of runtime environments among the keys and values: which are used by nobody any more.
//!
//! Those who upload write, in the namespace [`NAMESPACE`]: `part/<uri>/<number>` for the content,
//! `uri/<uri>` when that is complete, and before both `job/<hex of a job>/<uri>`, which says that the job
//! uses it. A package is used as long as such a job runs, or the environment of an actor names it.

use std::collections::BTreeSet;

use ray_core::id::JobId;

use crate::kv::Kv;

/// Where packages are.
pub const NAMESPACE: &[u8] = b"runtime_env_packages";

/// The keys that nobody needs: of each all that begin with it.
pub(crate) fn unused(
    kv: &Kv,
    is_running: impl Fn(JobId) -> bool,
    is_named_by_actor: impl Fn(&str) -> bool,
) -> Vec<Vec<u8>> {
    let mut used = BTreeSet::new();
    let mut doomed = Vec::new();
    for key in kv.keys(NAMESPACE, b"job/") {
        match job_and_uri(&key) {
            Some((job_id, uri)) if is_running(job_id) => drop(used.insert(uri.to_owned())),
            Some(_) | None => doomed.push(key),
        }
    }
    let of_kind = |kind: &'static [u8]| {
        let keys = kv.keys(NAMESPACE, kind);
        keys.into_iter().filter_map(move |key| String::from_utf8(key[kind.len()..].to_vec()).ok())
    };
    // A package whose upload was never completed has parts only.
    let parts = of_kind(b"part/").filter_map(|part| Some(part.rsplit_once('/')?.0.to_owned()));
    let uris: BTreeSet<_> = of_kind(b"uri/").chain(parts).collect();
    for uri in uris.into_iter().filter(|uri| !used.contains(uri) && !is_named_by_actor(uri)) {
        // First what says that it is there.
        doomed.push(format!("uri/{uri}").into_bytes());
        doomed.push(format!("part/{uri}/").into_bytes());
    }
    doomed
}

fn job_and_uri(key: &[u8]) -> Option<(JobId, &str)> {
    let (job_id, uri) = std::str::from_utf8(key).ok()?.strip_prefix("job/")?.split_once('/')?;
    Some((job_id.parse().ok()?, uri))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn job(number: u8) -> JobId {
        JobId::from_bytes([number; 16])
    }

    fn kv(keys: &[String]) -> Kv {
        let mut kv = Kv::default();
        for key in keys {
            kv.put(NAMESPACE.to_vec(), key.clone().into_bytes(), (*b"x").into(), true, &mut Vec::new());
        }
        kv
    }

    fn package(uri: &str, jobs: &[u8]) -> Vec<String> {
        let uses = jobs.iter().map(|&number| format!("job/{}/{uri}", job(number)));
        uses.chain([format!("part/{uri}/0"), format!("part/{uri}/1"), format!("uri/{uri}")]).collect()
    }

    fn unused_of(kv: &Kv, running: &[u8], named: &str) -> Vec<String> {
        let keys = unused(kv, |id| running.iter().any(|&number| job(number) == id), |uri| uri == named);
        keys.into_iter().map(|key| String::from_utf8(key).unwrap()).collect()
    }

    #[test]
    fn a_package_lives_as_long_as_one_of_its_jobs() {
        let kv = kv(&[package("gcs://a.zip", &[1, 2]), package("gcs://b/c.whl", &[1])].concat());
        assert_eq!(unused_of(&kv, &[1, 2], ""), Vec::<String>::new());
        let of_first = [format!("job/{}/gcs://a.zip", job(1)), format!("job/{}/gcs://b/c.whl", job(1))];
        let expected =
            [&of_first[..], &["uri/gcs://b/c.whl".to_owned(), "part/gcs://b/c.whl/".to_owned()]].concat();
        assert_eq!(unused_of(&kv, &[2], ""), expected);
    }

    #[test]
    fn a_package_that_an_actor_names_outlives_its_job() {
        let kv = kv(&package("gcs://a.zip", &[1]));
        assert_eq!(unused_of(&kv, &[], "gcs://a.zip"), [format!("job/{}/gcs://a.zip", job(1))]);
    }

    #[test]
    fn an_upload_that_was_never_completed_goes_too_unless_its_job_runs() {
        let keys = [format!("job/{}/gcs://a.zip", job(1)), "part/gcs://a.zip/0".to_owned()];
        let kv = kv(&keys);
        assert_eq!(unused_of(&kv, &[1], ""), Vec::<String>::new());
        assert!(unused_of(&kv, &[], "").contains(&"part/gcs://a.zip/".to_owned()));
    }
}
