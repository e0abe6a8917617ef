//! Waiting until a change is true: asks the daemon until it is, bounded by a time limit and by the keyboard. Waiting never
//! changes anything: when it ends early the work goes on.

use std::time::Duration;

use super::client::Client;
use super::codes;
use super::exit::Exit;
use super::progress::{Progress, Step};
use super::report::Failure;
use super::session::say;
use crate::model::views::RolloutView;

/// Between two looks. A change of one replica takes a few milliseconds; people see no difference below this.
const LOOK: Duration = Duration::from_millis(100);
/// So many looks in a row may fail before waiting gives up: a daemon that restarts is back within a second or two.
const MISSES: u32 = 50;
/// So many looks may still show the change before ours.
const STALE: u32 = 20;

/// So many looks may show a revision that was proved long ago with no replica serving: one that is being healed is back
/// sooner.
const IDLE: u32 = 20;

/// How waiting for a revision ended.
#[derive(Clone, Debug, PartialEq)]
pub enum Outcome {
    /// The revision serves, or was proved before and serves no more: then `new_serving` is 0.
    Done(RolloutView),
    /// It does not, and why.
    Refused(RolloutView),
    /// Somebody deployed another one.
    Superseded(u64),
}

/// What one look says about the revision that is waited for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    Wait,
    Done,
    Refused,
    /// The view is about another revision.
    Other,
}

fn judge(view: &RolloutView, revision: u64) -> Verdict {
    match view.state.as_str() {
        _ if view.to != revision => Verdict::Other,
        "done" => Verdict::Done,
        "refused" => Verdict::Refused,
        _ => Verdict::Wait,
    }
}

/// After a newer one was refused, what is wanted is the one that it went back to: the view as that one's.
fn seen_from(view: RolloutView, revision: u64) -> RolloutView {
    if view.state != "refused" || view.from != Some(revision) || view.to <= revision {
        return view;
    }
    RolloutView {
        from: None,
        to: revision,
        state: "done".into(),
        reason: None,
        old_serving: view.new_serving,
        new_serving: view.old_serving,
        ..view
    }
}

fn step_of(view: &RolloutView) -> Step {
    Step {
        schema: 1,
        service: view.service.clone(),
        revision: Some(view.to),
        state: view.state.clone(),
        new_serving: view.new_serving,
        old_serving: view.old_serving,
        wanted: view.wanted,
        note: view.reason.clone().or_else(|| view.notes.last().cloned()),
    }
}

/// Follows a revision until it serves or is refused.
///
/// # Errors
/// The limit is reached (7), the keyboard interrupts (130), or the daemon is lost.
pub async fn revision(
    client: &Client,
    service: &str,
    revision: u64,
    limit: Duration,
    progress: &mut Progress,
) -> Result<Outcome, Failure> {
    let path = format!("/v1/services/{service}/rollout");
    let (mut stale, mut idle) = (0, 0);
    let again = format!("narae rollout status {service}");
    until(
        limit,
        &again,
        async |seen: &mut Progress| {
            let view = seen_from(client.get(&path).await?, revision);
            Ok(match judge(&view, revision) {
                Verdict::Done if view.new_serving == 0 && view.wanted > 0 && idle < IDLE => {
                    idle += 1;
                    None
                }
                Verdict::Done => {
                    seen.show(step_of(&view));
                    Some(Outcome::Done(view))
                }
                Verdict::Refused => {
                    seen.show(step_of(&view));
                    Some(Outcome::Refused(view))
                }
                Verdict::Wait => {
                    seen.show(step_of(&view));
                    None
                }
                Verdict::Other => {
                    stale += 1;
                    (stale > STALE).then_some(Outcome::Superseded(view.to))
                }
            })
        },
        progress,
    )
    .await
}

/// Looks until there is an answer. `again` is the command that shows the work after waiting ended early.
///
/// # Errors
/// The limit is reached (7), the keyboard interrupts (130), or `look` keeps failing.
pub async fn until<T>(
    limit: Duration,
    again: &str,
    look: impl AsyncFnMut(&mut Progress) -> Result<Option<T>, Failure>,
    progress: &mut Progress,
) -> Result<T, Failure> {
    until_every(LOOK, limit, again, look, progress).await
}

async fn until_every<T>(
    pause: Duration,
    limit: Duration,
    again: &str,
    mut look: impl AsyncFnMut(&mut Progress) -> Result<Option<T>, Failure>,
    progress: &mut Progress,
) -> Result<T, Failure> {
    let looking = async {
        let mut misses = 0;
        loop {
            match look(progress).await {
                Ok(Some(found)) => return Ok(found),
                Ok(None) => misses = 0,
                Err(failure) if failure.exit == Exit::Unreachable && misses < MISSES => misses += 1,
                Err(failure) => return Err(failure),
            }
            tokio::time::sleep(pause).await;
        }
    };
    let ended = tokio::select! {
        found = tokio::time::timeout(limit, looking) => found.map_err(|_| Early::Limit),
        _ = tokio::signal::ctrl_c() => Err(Early::Keyboard),
    };
    progress.clear();
    match ended {
        Ok(found) => found,
        Err(Early::Limit) => Err(Failure::new(
            Exit::TimedOut,
            codes::TIME,
            format!("not done within {}; the work goes on", span(limit)),
        )
        .help(format!("see how far it is with `{again}`"))),
        Err(Early::Keyboard) => {
            say(&format!("detached; the work goes on. To see it again: {again}"));
            Err(Failure::silent(Exit::Interrupted))
        }
    }
}

/// `300ms`, `5m0s`.
fn span(limit: Duration) -> String {
    if limit < Duration::from_secs(1) {
        format!("{}ms", limit.as_millis())
    } else {
        super::units::age(limit)
    }
}

enum Early {
    Limit,
    Keyboard,
}

/// What a followed revision means for the exit code.
///
/// # Errors
/// It was refused: 8 when an older revision serves on, 1 when there is none; or another one took its place.
pub fn conclude(service: &str, revision: u64, outcome: Outcome) -> Result<RolloutView, Failure> {
    match outcome {
        Outcome::Done(view) if view.new_serving == 0 && view.wanted > 0 => {
            let why = view.notes.last().map_or_else(String::new, |note| format!(": {note}"));
            Err(Failure::new(
                Exit::NotHealthy,
                codes::NOT_SERVING,
                format!("{service} revision {revision} is what is wanted, but no replica serves{why}"),
            )
            .help(format!("see why with `narae status {service}`")))
        }
        Outcome::Done(view) => Ok(view),
        Outcome::Refused(view) => {
            let why = view.reason.clone().or_else(|| view.notes.last().cloned());
            let why = why.map_or_else(String::new, |w| format!(": {w}"));
            Err(match view.from {
                Some(from) => Failure::new(
                    Exit::RolledBack,
                    codes::ROLLED_BACK,
                    format!("{service} revision {revision} was refused and rolled back, revision {from} serves{why}"),
                ),
                None => Failure::new(
                    Exit::Failed,
                    codes::REFUSED,
                    format!("{service} revision {revision} was refused, and there is no older one{why}"),
                ),
            }
            .help(format!("what it said: narae logs {service} --revision {revision}")))
        }
        Outcome::Superseded(by) => Err(Failure::new(
            Exit::Changed,
            codes::SUPERSEDED,
            format!("{service} revision {revision} is not wanted any more: revision {by} took its place"),
        )
        .help(format!("see it with `narae rollout status {service}`"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::args::Globals;
    use crate::cli::session::Session;

    fn view(from: Option<u64>, to: u64, state: &str) -> RolloutView {
        RolloutView {
            schema: 1,
            service: "hello".into(),
            from,
            to,
            state: state.into(),
            reason: Some("start trapped three times".into()),
            notes: vec![],
            old_serving: 0,
            new_serving: 0,
            wanted: 1,
            ..RolloutView::default()
        }
    }

    fn exit(outcome: Outcome) -> Exit {
        conclude("hello", 2, outcome).map_or_else(|f| f.exit, |_| Exit::Done)
    }

    #[test]
    fn a_refused_revision_ends_8_and_a_refused_first_one_1() {
        assert_eq!(exit(Outcome::Refused(view(Some(1), 2, "refused"))), Exit::RolledBack);
        assert_eq!(exit(Outcome::Refused(view(None, 2, "refused"))), Exit::Failed);
        let serving = RolloutView {
            new_serving: 1,
            ..view(Some(1), 2, "done")
        };
        assert_eq!(exit(Outcome::Done(serving)), Exit::Done);
        assert_eq!(exit(Outcome::Superseded(3)), Exit::Changed);
    }

    #[test]
    fn a_proved_revision_that_serves_no_more_is_not_told_as_healthy() {
        assert_eq!(exit(Outcome::Done(view(Some(1), 2, "done"))), Exit::NotHealthy);
        let scaled_to_none = RolloutView {
            wanted: 0,
            ..view(Some(1), 2, "done")
        };
        assert_eq!(exit(Outcome::Done(scaled_to_none)), Exit::Done);
    }

    #[test]
    fn a_view_of_another_revision_is_no_verdict_on_ours() {
        assert_eq!(judge(&view(None, 1, "done"), 2), Verdict::Other);
        assert_eq!(judge(&view(None, 2, "running"), 2), Verdict::Wait);
        assert_eq!(judge(&view(None, 2, "something new"), 2), Verdict::Wait);
    }

    #[test]
    fn a_newer_one_that_was_refused_is_no_verdict_on_the_one_it_went_back_to() {
        let serving = RolloutView {
            old_serving: 2,
            ..view(Some(1), 2, "refused")
        };
        let back = seen_from(serving.clone(), 1);
        assert_eq!((judge(&back, 1), back.new_serving), (Verdict::Done, 2));
        assert_eq!(judge(&seen_from(serving, 2), 2), Verdict::Refused);
    }

    fn silent() -> Progress {
        let session = Session::new(Globals {
            quiet: true,
            ..Globals::default()
        })
        .unwrap();
        Progress::of(&session)
    }

    const MINUTE: Duration = Duration::from_secs(60);

    #[tokio::test]
    async fn waiting_ends_7_at_its_limit() {
        let mut progress = silent();
        let never = until::<()>(Duration::from_millis(1), "x", async |_| Ok(None), &mut progress).await;
        assert_eq!(never.unwrap_err().exit, Exit::TimedOut);
    }

    #[tokio::test]
    async fn a_daemon_that_restarts_is_waited_for_and_one_that_stays_away_is_not() {
        let gone = || Failure::new(Exit::Unreachable, codes::UNREACHABLE, "gone");
        let mut looks = 0;
        let mut progress = silent();
        let look = async |_: &mut Progress| {
            looks += 1;
            if looks < 10 { Err(gone()) } else { Ok(Some(looks)) }
        };
        assert_eq!(
            until_every(Duration::ZERO, MINUTE, "x", look, &mut progress).await,
            Ok(10)
        );
        let away = until_every::<()>(Duration::ZERO, MINUTE, "x", async |_| Err(gone()), &mut progress).await;
        assert_eq!(away.unwrap_err().exit, Exit::Unreachable);
    }
}
