//! What a changed secret does to a job, in a world whose runs are scripted.

use crate::model::{RevisionState, RunState};
use crate::plan::world::jobs::{Command, JobWorld};
use crate::plan::world::{ms, service_name};

fn proved(world: &JobWorld, revision: usize) -> bool {
    let service = &world.desired.services[&service_name("report")];
    let revision = service.revisions.values().nth(revision - 1);
    revision.is_some_and(|r| matches!(r.state, RevisionState::Proved { .. }))
}

#[test]
fn a_changed_secret_runs_no_finished_job_again_and_what_runs_goes_on() {
    let mut world = JobWorld::new(1);
    world.deploy("report", Default::default(), Command::default());
    world.advance(ms(1_000)).change_secret("report").advance(ms(60_000));
    assert!(proved(&world, 2) && world.run("report", 2).is_none());
    assert_eq!(world.run("report", 1).unwrap().state, RunState::Succeeded);

    let takes = Some(ms(5_000));
    world.deploy(
        "report",
        Default::default(),
        Command {
            takes,
            ..Command::default()
        },
    );
    world.advance(ms(1_000)).change_secret("report").advance(ms(60_000));
    let run = world.run("report", 2).unwrap();
    assert_eq!((&run.state, run.revision.0), (&RunState::Succeeded, 3));
    assert!(proved(&world, 4) && world.run("report", 3).is_none());
    world.begin("report", "by hand").advance(ms(60_000));
    assert_eq!(
        world.run("report", 3).unwrap().revision.0,
        4,
        "the next run has the new value"
    );
    assert_eq!(world.breaches, []);
}

#[test]
fn a_secret_that_changes_before_the_first_run_began_does_not_take_it_away() {
    let mut world = JobWorld::new(1);
    world.deploy("report", Default::default(), Command::default());
    world.change_secret("report").advance(ms(60_000));
    let run = world.run("report", 1).unwrap();
    assert_eq!((&run.state, run.revision.0), (&RunState::Succeeded, 2));
    assert!(world.run("report", 2).is_none());
    assert_eq!(world.breaches, []);
}
