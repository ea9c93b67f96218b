//! Shared memory between real processes: this test program starts itself again as a peer.

use std::fs;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use ray_object_store::shm::{Access, ShmRegion};

const MIB: u64 = 1 << 20;
/// Set in a peer: the path of the region's file in its parent.
const REGION: &str = "TEST_PEER_REGION";
/// Set in a peer: what it is to do.
const ROLE: &str = "TEST_PEER_ROLE";

/// What a peer does; without a parent this passes and shows nothing.
#[test]
fn peer() {
    let (Ok(path), Ok(role)) = (std::env::var(REGION), std::env::var(ROLE)) else { return };
    let fd: OwnedFd = fs::File::options().read(true).write(true).open(path).unwrap().into();
    let region = ShmRegion::from_fd(fd, Access::ReadWrite).unwrap();
    match role.as_str() {
        // Answers what it reads, byte for byte plus one, further on.
        "echo" => {
            let question = region.slice(0, 1000).unwrap();
            let mut answer = region.slice_mut(4096, 1000).unwrap();
            answer.iter_mut().zip(question.iter()).for_each(|(to, from)| *to = from + 1);
        }
        // Writes, tells so, and stays until it is killed.
        "hang" => {
            region.slice_mut(MIB - 1, 1).unwrap()[0] = 1;
            loop {
                std::thread::park();
            }
        }
        other => panic!("no role {other}"),
    }
}

fn start_peer(region: &ShmRegion, role: &str) -> Child {
    let path = format!("/proc/{}/fd/{}", std::process::id(), region.fd().as_raw_fd());
    Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "two_processes::peer", "--nocapture"])
        .env(REGION, path)
        .env(ROLE, role)
        .stdout(Stdio::null())
        .spawn()
        .unwrap()
}

fn until(what: &str, holds: impl Fn() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(60);
    while !holds() {
        assert!(Instant::now() < deadline, "{what} did not come");
        std::thread::yield_now();
    }
}

#[test]
fn a_peer_reads_and_writes_the_same_memory() {
    let region = ShmRegion::create("peers", MIB).unwrap();
    region.slice_mut(0, 1000).unwrap().fill(41);
    assert!(start_peer(&region, "echo").wait().unwrap().success());
    let answer = region.slice(4096, 1000).unwrap();
    assert!(answer.iter().all(|byte| *byte == 42));
    // Where it was written, not a copy of it.
    assert_eq!(answer.as_ptr(), region.as_ptr().wrapping_add(4096));
}

#[test]
fn a_killed_peer_leaves_the_memory_to_the_others_and_nothing_else() {
    let region = ShmRegion::create("killed-peer", MIB).unwrap();
    let mut peer = start_peer(&region, "hang");
    let maps = format!("/proc/{}/maps", peer.id());
    until("the peer's write", || region.slice(MIB - 1, 1).unwrap()[0] == 1);
    assert!(fs::read_to_string(&maps).unwrap().contains("memfd:killed-peer"));
    peer.kill().unwrap();
    peer.wait().unwrap();
    assert_eq!(region.slice(MIB - 1, 1).unwrap()[0], 1);
    // The memory has no name, so that only mappings keep it: it is gone with the last of them.
    drop(region);
    assert!(!fs::read_to_string("/proc/self/maps").unwrap().contains("memfd:killed-peer"));
    let names = fs::read_dir("/dev/shm").into_iter().flatten().flatten();
    assert_eq!(names.filter(|name| name.file_name().to_string_lossy().contains("killed-peer")).count(), 0);
}
