use ray_link::{FromRaylet, ToRaylet};

use crate::world::World;

#[test]
fn shutting_down_ends_all_clients_and_leaves_no_socket() {
    let mut world = World::start(2.0);
    let mut driver = world.driver();
    driver.demand(1, 1.0, 2);
    let (mut first, second) = (world.worker(), world.worker());
    driver.tell(ToRaylet::Shutdown { reason: "done".to_owned() });
    first.wait_for("the end", |message| {
        matches!(message, FromRaylet::Exit { reason } if reason == "done").then_some(())
    });
    world.join().unwrap();
    driver.wait_for_end();
    drop((first, second));
    assert!(!world.info.socket_path.exists());
    assert!(!world.info.session_dir.join("sockets").exists());
    assert!(world.info.session_dir.join("logs").exists());
}

#[test]
fn the_node_ends_with_the_driver_that_owns_it() {
    let mut owner = std::process::Command::new("sleep").arg("600").spawn().unwrap();
    let mut world = World::start_with(|config| config.owner_pid = Some(owner.id()));
    owner.kill().unwrap();
    owner.wait().unwrap();
    world.join().unwrap();
    assert!(!world.info.socket_path.exists());
}

#[test]
fn a_started_head_is_found_by_others_until_it_ends() {
    let mut world = World::start_with(|config| config.owner_pid = None);
    let announcement = world.info.session_dir.parent().unwrap().join("ray_current_cluster");
    let text = std::fs::read_to_string(&announcement).unwrap();
    let found: ray_raylet::node::NodeInfoJson = serde_json::from_str(&text).unwrap();
    assert_eq!(found, world.info);
    world.driver().tell(ToRaylet::Shutdown { reason: "done".to_owned() });
    world.join().unwrap();
    assert!(!announcement.exists());
}
