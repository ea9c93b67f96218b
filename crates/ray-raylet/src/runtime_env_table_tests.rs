//! The table under a made-up clock.

use proptest::prelude::*;

use super::*;

const SECOND: Duration = Duration::from_secs(1);

fn env(name: &str) -> RuntimeEnv {
    let text = format!(r#"{{"pip": {{"packages": ["{name}"]}}, "config": {{"setup_timeout_seconds": 60}}}}"#);
    RuntimeEnv::parse(&text).unwrap()
}

fn config() -> RuntimeEnvConfig {
    RuntimeEnvConfig { max_setting_up: 2, max_unused: 2, cache_bytes: 100, ..RuntimeEnvConfig::default() }
}

fn used<const N: usize>(envs: [&RuntimeEnv; N]) -> BTreeSet<RuntimeEnvId> {
    envs.iter().map(|env| env.id()).collect()
}

fn prepared(path: &str, bytes: u64) -> Prepared {
    let resources = vec![Resource { path: path.into(), bytes }];
    Prepared { resources, ..Prepared::default() }
}

fn broken() -> SetupError {
    SetupError {
        step: "installing a with pip".to_owned(),
        reason: "no such package".to_owned(),
        ..SetupError::default()
    }
}

struct World {
    table: RuntimeEnvTable,
    out: Vec<RuntimeEnvEffect>,
    now: Instant,
}

impl World {
    fn new() -> Self {
        Self { table: RuntimeEnvTable::new(config()), out: Vec::new(), now: Instant::now() }
    }

    fn want(&mut self, env: &RuntimeEnv) -> Standing {
        self.table.want(self.now, env, &mut self.out)
    }

    fn done(&mut self, env: &RuntimeEnv, result: Result<Prepared, SetupError>) -> bool {
        self.table.on_setup_done(self.now, env.id(), result, &mut self.out)
    }

    fn tick(&mut self, in_use: &BTreeSet<RuntimeEnvId>) -> Vec<RuntimeEnvId> {
        self.table.tick(self.now, in_use, &mut self.out)
    }

    fn effects(&mut self) -> Vec<RuntimeEnvEffect> {
        std::mem::take(&mut self.out)
    }
}

#[test]
fn variables_alone_are_ready_at_once_and_forgotten_with_their_last_use() {
    let mut world = World::new();
    let env = RuntimeEnv::parse(r#"{"env_vars": {"A": "1"}}"#).unwrap();
    assert_eq!(world.want(&env), Standing::Ready);
    assert_eq!(world.table.ready(env.id()).map(|(env, _)| env.clone()), Some(env.clone()));
    world.tick(&used([&env]));
    assert_eq!(world.effects(), []);
    world.tick(&used([]));
    assert_eq!(world.effects(), [RuntimeEnvEffect::Retire(env.id())]);
    assert!(world.table.is_empty());
}

#[test]
fn one_setup_serves_all_who_ask() {
    let mut world = World::new();
    let env = env("a");
    let since = world.now;
    assert_eq!(world.want(&env), Standing::Pending { since });
    world.now += SECOND;
    assert_eq!(world.want(&env), Standing::Pending { since });
    assert_eq!(world.effects(), [RuntimeEnvEffect::SetUp(env.clone())]);
    assert!(world.table.on_setup_started(env.id(), 7));
    assert_eq!(world.table.of_pid(7), Some(env.id()));
    assert!(world.done(&env, Ok(prepared("/venv", 10))));
    assert_eq!(world.want(&env), Standing::Ready);
    assert_eq!(world.effects(), []);
}

#[test]
fn no_more_are_set_up_at_once_than_allowed_and_the_others_in_turn() {
    let mut world = World::new();
    let [a, b, c] = ["a", "b", "c"].map(env);
    for env in [&a, &b, &c] {
        world.want(env);
        world.now += SECOND;
    }
    assert_eq!(world.effects(), [RuntimeEnvEffect::SetUp(a.clone()), RuntimeEnvEffect::SetUp(b)]);
    world.done(&a, Ok(Prepared::default()));
    assert_eq!(world.effects(), [RuntimeEnvEffect::SetUp(c)]);
}

#[test]
fn a_failure_is_told_for_a_moment_and_then_tried_again() {
    let mut world = World::new();
    let env = env("a");
    world.want(&env);
    world.effects();
    assert!(world.done(&env, Err(broken())));
    let Standing::Failed { reason } = world.want(&env) else { panic!("it failed") };
    for part in ["\"packages\":[\"a\"]", "while installing a with pip", "no such package"] {
        assert!(reason.contains(part), "{reason}");
    }
    assert_eq!(world.effects(), []);
    world.now += Duration::from_secs(10);
    assert_eq!(world.want(&env), Standing::Pending { since: world.now });
    assert_eq!(world.effects(), [RuntimeEnvEffect::SetUp(env)]);
}

#[test]
fn the_values_of_variables_are_not_told() {
    let text = r#"{"env_vars": {"TOKEN": "secret"}, "pip": ["a"]}"#;
    let text = shown(&RuntimeEnv::parse(text).unwrap());
    assert!(text.contains("TOKEN") && !text.contains("secret"), "{text}");
}

#[test]
fn a_setup_that_takes_too_long_is_ended_and_says_where_it_was() {
    let mut world = World::new();
    let env = env("a");
    world.want(&env);
    world.table.on_setup_started(env.id(), 7);
    assert_eq!(world.table.next_deadline(), Some(world.now + 60 * SECOND));
    world.effects();
    world.now += 60 * SECOND;
    world.tick(&used([&env]));
    assert_eq!(world.effects(), [RuntimeEnvEffect::Abort { id: env.id(), pid: Some(7) }]);
    world.tick(&used([&env]));
    assert_eq!(world.effects(), []);
    world.done(&env, Err(broken()));
    let Some(Standing::Failed { reason }) = world.table.standing(env.id()) else { panic!("it failed") };
    assert!(reason.contains("took longer than 60 s") && reason.contains("while installing a"), "{reason}");
}

#[test]
fn a_setup_that_cannot_be_ended_is_given_up() {
    let mut world = World::new();
    let env = env("a");
    world.want(&env);
    world.now += 60 * SECOND;
    assert_eq!(world.tick(&used([&env])), []);
    world.now += ABORT_LIMIT;
    assert_eq!(world.tick(&used([&env])), [env.id()]);
}

#[test]
fn a_setup_that_nobody_waits_for_is_ended() {
    let mut world = World::new();
    let env = env("a");
    world.want(&env);
    world.table.on_setup_started(env.id(), 7);
    world.effects();
    world.tick(&used([]));
    assert_eq!(world.effects(), [RuntimeEnvEffect::Abort { id: env.id(), pid: Some(7) }]);
    assert!(!world.done(&env, Ok(Prepared::default())), "nobody wants to know");
    assert!(world.table.is_empty());
}

#[test]
fn a_process_that_comes_after_the_end_of_the_wish_is_not_wanted() {
    let mut world = World::new();
    let env = env("a");
    world.want(&env);
    world.tick(&used([]));
    assert!(!world.table.on_setup_started(env.id(), 7));
}

#[test]
fn unused_environments_are_kept_for_a_while_and_not_too_many() {
    let mut world = World::new();
    let envs = ["a", "b", "c"].map(env);
    for env in &envs {
        world.want(env);
        world.done(env, Ok(prepared(env.text(), 1)));
    }
    world.tick(&used([&envs[0], &envs[1], &envs[2]]));
    world.effects();
    world.tick(&used([&envs[1], &envs[2]]));
    world.now += SECOND;
    world.tick(&used([]));
    assert_eq!(world.effects(), [RuntimeEnvEffect::Retire(envs[0].id())]);
    assert_eq!(world.table.next_deadline(), Some(world.now + 60 * SECOND));
    world.now += 60 * SECOND;
    world.tick(&used([&envs[2]]));
    assert_eq!(world.effects(), [RuntimeEnvEffect::Retire(envs[1].id())]);
}

#[test]
fn the_disk_is_cleared_of_what_nobody_uses_least_recently_used_first() {
    let mut world = World::new();
    let envs = ["a", "b", "c"].map(env);
    for (env, path) in envs.iter().zip(["/shared", "/shared", "/own"]) {
        world.want(env);
        world.done(env, Ok(prepared(path, 60)));
    }
    world.tick(&used([&envs[0], &envs[1], &envs[2]]));
    world.effects();
    world.now += 61 * SECOND;
    world.tick(&used([&envs[0]]));
    world.now += 61 * SECOND;
    world.tick(&used([&envs[0]]));
    let discarded = RuntimeEnvEffect::Discard("/own".into());
    assert!(world.effects().contains(&discarded), "the other is used by one that is used");
}

proptest! {
    /// Whatever happens, one set-up at most runs for each environment, not too many in all, whoever goes on
    /// asking is answered in the end, and nothing is left of what nobody uses.
    #[test]
    fn whoever_asks_is_answered(steps in prop::collection::vec((0u8..5, 0usize..4), 0..80)) {
        let envs = ["a", "b", "c", "d"].map(env);
        let mut world = World::new();
        let mut running: BTreeSet<RuntimeEnvId> = BTreeSet::new();
        let mut in_use: BTreeSet<RuntimeEnvId> = BTreeSet::new();
        let end = (0..40).map(|at| ([0, 2, 4, 4][at % 4], at / 4 % 4));
        for (kind, pick) in steps.into_iter().chain(end) {
            let env = &envs[pick];
            match kind {
                0 => {
                    world.want(env);
                    in_use.insert(env.id());
                }
                1 => drop(in_use.remove(&env.id())),
                2 if running.remove(&env.id()) => drop(world.done(env, Ok(prepared(env.text(), 60)))),
                3 if running.remove(&env.id()) => drop(world.done(env, Err(broken()))),
                4 => {
                    world.now += 7 * SECOND;
                    for id in world.tick(&in_use.clone()) {
                        running.remove(&id);
                        world.table.fail(world.now, id, "stuck".to_owned());
                    }
                }
                _ => {}
            }
            for effect in world.effects() {
                match effect {
                    RuntimeEnvEffect::SetUp(env) => prop_assert!(running.insert(env.id()), "twice at once"),
                    RuntimeEnvEffect::Abort { id, .. } => drop(running.remove(&id)),
                    RuntimeEnvEffect::Retire(id) => prop_assert!(!in_use.contains(&id)),
                    RuntimeEnvEffect::Discard(path) => {
                        let user = envs.iter().find(|env| path.as_os_str() == env.text());
                        prop_assert!(user.is_some_and(|env| world.table.ready(env.id()).is_none()));
                    }
                }
            }
            prop_assert!(running.len() <= 2);
        }
        for env in &envs {
            if in_use.contains(&env.id()) && world.table.standing(env.id()).is_some() {
                let pending = matches!(world.table.standing(env.id()), Some(Standing::Pending { .. }));
                prop_assert!(!pending || running.len() == 2 || running.contains(&env.id()), "{env:?} waits");
            }
        }
        for _ in 0..3 {
            world.now += 100 * SECOND;
            world.tick(&BTreeSet::new());
        }
        prop_assert!(envs.iter().all(|env| world.table.standing(env.id()).is_none()));
    }
}
