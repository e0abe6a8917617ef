//! The traffic split of a rollout as a few lines of text: a bar for each revision, and how the new one's share came to be.
//! Pure: what was seen goes in, lines come out. Knows no terminal but its width.

use super::units::{age, latency, printable};
use crate::model::views::{FiguresView, RolloutView};
use std::time::Duration;

/// Columns of a bar.
const BAR: usize = 40;
/// Columns of the course over time.
pub const COURSE: usize = 60;
const EIGHTHS: [char; 8] = [' ', '▏', '▎', '▍', '▌', '▋', '▊', '▉'];
const HEIGHTS: [char; 9] = [' ', '▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];

/// The new revision's share so far, one sample for each look, the newest last.
#[derive(Clone, Debug, Default)]
pub struct Course {
    shares: Vec<f64>,
    /// Looks that one sample stands for: doubled whenever the line is full.
    each: u32,
    looks: u32,
}

impl Course {
    /// Takes note of what a look showed.
    pub fn see(&mut self, view: &RolloutView) {
        let share = share_of(view, view.to);
        self.each = self.each.max(1);
        if self.looks.is_multiple_of(self.each) {
            self.shares.push(share);
        } else if let Some(last) = self.shares.last_mut() {
            *last = last.max(share);
        }
        self.looks += 1;
        if self.shares.len() > COURSE {
            let pairs = self.shares.chunks(2);
            self.shares = pairs.map(|p| p.iter().copied().fold(0.0, f64::max)).collect();
            self.each *= 2;
            self.looks = 0;
        }
    }

    fn line(&self) -> String {
        let height = |share: &f64| {
            let at = (1..HEIGHTS.len()).rfind(|n| *share >= *n as f64 * 12.5 - 6.25);
            HEIGHTS[at.unwrap_or(usize::from(*share > 0.0))]
        };
        self.shares.iter().map(height).collect()
    }
}

fn share_of(view: &RolloutView, revision: u64) -> f64 {
    view.split
        .iter()
        .find(|s| s.revision == revision)
        .map_or(0.0, |s| s.percent)
}

/// The picture of one look, after those that `course` has seen.
pub fn frame(view: &RolloutView, course: &Course) -> Vec<String> {
    let mut out = vec![head(view)];
    for share in &view.split {
        out.push(format!(
            "  revision {:<5} {} {:>6} {:>3} serving",
            share.revision,
            bar(share.percent),
            percent(share.percent),
            share.serving
        ));
    }
    if view.split.is_empty() {
        out.push("  nothing serves".into());
    }
    out.push(
        format!("  share of {:<5} {}", view.to, course.line())
            .trim_end()
            .to_owned(),
    );
    if let Some(gates) = &view.gates {
        out.push(format!("  new            {}", figures(&gates.new, gates.min_requests)));
        out.push(format!(
            "  stable         {}",
            figures(&gates.stable, gates.min_requests)
        ));
    }
    if let Some(reason) = &view.reason {
        out.push(format!("  {}", printable(reason)));
    }
    out
}

/// `hello 1 -> 2 canary, step 1 of 3, 12s left: running`.
pub fn head(view: &RolloutView) -> String {
    let from = view.from.map_or_else(String::new, |n| format!("{n} -> "));
    let mut text = format!("{} {from}{} {}", view.service, view.to, view.strategy);
    if let Some(step) = view.step.filter(|_| view.state == "running") {
        text.push_str(&format!(", step {step} of {}", view.steps));
    }
    if let Some(left) = view.hold_left_ms.filter(|_| view.state == "running") {
        text.push_str(&format!(", {} left", age(Duration::from_millis(left))));
    }
    let paused = if view.paused { ", paused" } else { "" };
    format!("{text}: {}{paused}", view.state)
}

/// One line for logs: the head without the time that passes, and the shares.
pub fn line(view: &RolloutView) -> String {
    let still = RolloutView {
        hold_left_ms: None,
        ..view.clone()
    };
    let shares: Vec<String> = view
        .split
        .iter()
        .map(|s| format!("{} to revision {}", percent(s.percent), s.revision))
        .collect();
    let mut text = head(&still);
    if !shares.is_empty() {
        text.push_str(&format!("; {}", shares.join(", ")));
    }
    if let Some(reason) = &view.reason {
        text.push_str(&format!("; {}", printable(reason)));
    }
    text
}

/// Whether two looks show the same, but for times and figures that pass.
pub fn same(a: &RolloutView, b: &RolloutView) -> bool {
    let still = |v: &RolloutView| RolloutView {
        hold_left_ms: None,
        gates: None,
        notes: Vec::new(),
        ..v.clone()
    };
    still(a) == still(b)
}

fn bar(share: f64) -> String {
    let full = (BAR * 8) as f64;
    let eighths = (1..=BAR * 8)
        .rfind(|n| *n as f64 <= share / 100.0 * full + 0.5)
        .unwrap_or(0);
    let mut text: String = std::iter::repeat_n('█', eighths / 8).collect();
    if !eighths.is_multiple_of(8) {
        text.push(EIGHTHS[eighths % 8]);
    }
    let width = text.chars().count();
    text.extend(std::iter::repeat_n(' ', BAR.saturating_sub(width)));
    text
}

fn percent(share: f64) -> String {
    if (share - share.round()).abs() < 0.05 {
        format!("{share:.0} %")
    } else {
        format!("{share:.1} %")
    }
}

fn figures(f: &FiguresView, min: u64) -> String {
    let rate = |n: u64| percent(n as f64 * 100.0 / f.requests.max(1) as f64);
    let few = if f.requests < min {
        format!(" of {min}")
    } else {
        String::new()
    };
    let mut text = format!(
        "{}{few} requests, errors {}, traps {}",
        f.requests,
        rate(f.errors),
        rate(f.traps)
    );
    if let Some(p99) = f.p99_ms {
        text.push_str(&format!(", p99 {}", latency(p99)));
    }
    if let Some(cpu) = f.cpu_ms {
        text.push_str(&format!(", cpu {}", latency(cpu)));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::views::{GatesView, ShareView};

    fn view(share: f64, state: &str) -> RolloutView {
        let part = |revision, percent, serving| ShareView {
            revision,
            percent,
            serving,
        };
        let figures = |requests, errors| FiguresView {
            requests,
            errors,
            traps: 0,
            p99_ms: Some(12.0),
            cpu_ms: Some(0.31),
        };
        RolloutView {
            schema: 1,
            service: "hello".into(),
            from: Some(4),
            to: 5,
            state: state.into(),
            reason: None,
            notes: vec![],
            old_serving: 4,
            new_serving: 1,
            wanted: 4,
            strategy: "canary".into(),
            step: Some(1),
            steps: 3,
            paused: false,
            hold_left_ms: Some(12_400),
            split: vec![part(4, 100.0 - share, 4), part(5, share, 1)],
            gates: Some(GatesView {
                min_requests: 100,
                new: figures(73, 1),
                stable: figures(1387, 0),
            }),
        }
    }

    fn seen(shares: &[f64]) -> Course {
        let mut course = Course::default();
        for share in shares {
            course.see(&view(*share, "running"));
        }
        course
    }

    #[test]
    fn a_canary_is_drawn_with_its_course_and_its_figures() {
        let course = seen(&[0.0, 0.0, 5.0, 5.0, 5.0, 5.0]);
        insta::assert_snapshot!("draw_canary", frame(&view(5.0, "running"), &course).join("\n"));
        let climbed = seen(&[0.0, 5.0, 5.0, 25.0, 25.0, 50.0, 50.0, 100.0]);
        let done = RolloutView {
            gates: None,
            step: None,
            hold_left_ms: None,
            split: view(100.0, "done").split.split_off(1),
            ..view(100.0, "done")
        };
        insta::assert_snapshot!("draw_done", frame(&done, &climbed).join("\n"));
    }

    #[test]
    fn elsewhere_each_change_is_one_line() {
        let one = view(5.0, "running");
        assert_eq!(
            line(&one),
            "hello 4 -> 5 canary, step 1 of 3: running; 95 % to revision 4, 5 % to revision 5"
        );
        let later = RolloutView {
            hold_left_ms: Some(1),
            ..one.clone()
        };
        assert!(same(&one, &later) && !same(&one, &view(25.0, "running")));
        let refused = RolloutView {
            reason: Some("error rate\u{1b}[2J".into()),
            ..view(0.0, "refused")
        };
        assert!(line(&refused).ends_with("; error rate\\u{1b}[2J"));
    }

    #[test]
    fn a_long_course_fits_its_line_and_keeps_its_peaks() {
        let mut course = Course::default();
        for look in 0..10_000 {
            course.see(&view(if look == 5_000 { 100.0 } else { 5.0 }, "running"));
        }
        let line = course.line();
        assert!(line.chars().count() <= COURSE && line.contains('█'), "{line}");
    }

    #[test]
    fn bars_are_all_of_one_width() {
        for share in [0.0, 0.1, 5.0, 33.3, 50.0, 99.9, 100.0] {
            assert_eq!(bar(share).chars().count(), BAR, "{share}");
        }
        assert_eq!(bar(50.0).trim_end(), "█".repeat(20));
    }
}
