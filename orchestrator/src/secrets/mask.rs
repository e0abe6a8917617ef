//! Guests print what they should not: values of their own secrets are taken out of a line before anything keeps it.
//!
//! Looks for the value as it is and as JSON writes it, and for each line of one with several. A value that was encoded otherwise, cut in two or woven into
//! another text is not found: this is a net under the guest, not a wall.

use std::borrow::Cow;
use std::sync::Arc;

use narae_runtime::{Level, LogSink, Stream};

use crate::model::Redacted;

/// What stands for a value.
const STARS: &[u8] = b"***";
/// Shorter values and lines would take `yes` and `1234` out of every text.
pub const LEAST_BYTES: usize = 8;

/// The values to look for.
#[derive(Clone, Debug, Default)]
pub struct Mask {
    /// The longest first: a value inside another must not leave the rest of it behind.
    needles: Arc<[Redacted]>,
}

impl Mask {
    /// For these values. Those under [`LEAST_BYTES`] are not looked for.
    pub fn of<'a>(values: impl IntoIterator<Item = &'a Redacted>) -> Self {
        let mut needles = Vec::new();
        for value in values {
            // Output comes line by line: of a key file each line is a secret.
            let lines = value
                .expose()
                .lines()
                .map(str::trim_end)
                .filter(|l| l.len() >= LEAST_BYTES);
            for line in lines {
                needles.push(Redacted::new(line.to_owned()));
                // As a logger that writes JSON puts it between its quotes.
                let quoted = serde_json::to_string(line).unwrap_or_default();
                let quoted = quoted.trim_start_matches('"').strip_suffix('"').unwrap_or_default();
                if quoted.len() > line.len() {
                    needles.push(Redacted::new(quoted.to_owned()));
                }
            }
        }
        needles.sort_by_key(|n| std::cmp::Reverse(n.expose().len()));
        Self {
            needles: needles.into(),
        }
    }

    /// The line with each value replaced.
    pub fn apply<'a>(&self, line: &'a [u8]) -> Cow<'a, [u8]> {
        let mut out = Cow::Borrowed(line);
        for needle in self.needles.iter() {
            if let Some(without) = replaced(&out, needle.expose().as_bytes()) {
                out = Cow::Owned(without);
            }
        }
        out
    }

    /// `sink`, behind the mask.
    pub fn over(&self, sink: Arc<dyn LogSink>) -> Arc<dyn LogSink> {
        if self.needles.is_empty() {
            return sink;
        }
        let mask = self.clone();
        Arc::new(Masked { mask, sink })
    }
}

struct Masked {
    mask: Mask,
    sink: Arc<dyn LogSink>,
}

impl LogSink for Masked {
    fn line(&self, stream: Stream, line: &[u8]) {
        self.sink.line(stream, &self.mask.apply(line));
    }

    fn log(&self, level: Level, line: &[u8]) {
        self.sink.log(level, &self.mask.apply(line));
    }
}

/// None: it is not in there.
fn replaced(line: &[u8], needle: &[u8]) -> Option<Vec<u8>> {
    let mut at = find(line, needle)?;
    let (mut out, mut rest) = (Vec::with_capacity(line.len()), line);
    loop {
        out.extend_from_slice(&rest[..at]);
        out.extend_from_slice(STARS);
        rest = &rest[at + needle.len()..];
        match find(rest, needle) {
            Some(next) => at = next,
            None => break,
        }
    }
    out.extend_from_slice(rest);
    Some(out)
}

/// By the first byte, then the rest: lines are short and needles rare.
fn find(line: &[u8], needle: &[u8]) -> Option<usize> {
    let first = *needle.first()?;
    let last = line.len().checked_sub(needle.len())?;
    let mut from = 0;
    while from <= last {
        let at = from + line[from..=last].iter().position(|b| *b == first)?;
        if line[at..].starts_with(needle) {
            return Some(at);
        }
        from = at + 1;
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mask(values: &[&str]) -> Mask {
        let values: Vec<_> = values.iter().map(|v| Redacted::new((*v).to_owned())).collect();
        Mask::of(&values)
    }

    fn masked(values: &[&str], line: &str) -> String {
        String::from_utf8(mask(values).apply(line.as_bytes()).into_owned()).unwrap()
    }

    #[test]
    fn a_value_is_stars_wherever_it_stands_in_a_line() {
        let values = ["correct-horse"];
        assert_eq!(masked(&values, "correct-horse"), "***");
        assert_eq!(masked(&values, "a correct-horse b correct-horse"), "a *** b ***");
        assert_eq!(
            masked(&values, "correct-correct-horsecorrect-horsec"),
            "correct-******c"
        );
        for plain in ["", "correct-hors", "orrect-horse", "CORRECT-HORSE"] {
            assert_eq!(masked(&values, plain), plain);
        }
    }

    #[test]
    fn the_longer_of_two_values_goes_first() {
        assert_eq!(
            masked(&["password", "password-of-all"], "x password-of-all y password"),
            "x *** y ***"
        );
    }

    #[test]
    fn short_values_are_left_alone_and_lines_of_a_long_one_are_not() {
        assert_eq!(masked(&["1234567"], "1234567"), "1234567");
        let key = "-----BEGIN KEY-----\r\nMIIEvQIBADANBg\r\nab\r\n-----END KEY-----\n";
        assert_eq!(masked(&[key], "read MIIEvQIBADANBg ab"), "read *** ab");
        assert_eq!(masked(&["one-line-with-its-end\n"], "one-line-with-its-end"), "***");
    }

    #[test]
    fn a_value_with_quotes_is_found_in_json_too() {
        let value = r#"pa"ss\wo"rd"#;
        let line = serde_json::json!({ "m": format!("x {value}") }).to_string();
        assert_eq!(masked(&[value], &line), r#"{"m":"x ***"}"#);
        assert_eq!(masked(&[value], &format!("x {value}")), "x ***");
    }

    #[test]
    fn whatever_the_line_nothing_of_a_whole_value_is_left() {
        let mut seed = 1_u64;
        let mut next = |n: u64| {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (seed >> 33) % n
        };
        for _ in 0..2_000 {
            let mut text = |n: u64| (0..n).map(|_| if next(2) == 0 { 'a' } else { 'b' }).collect::<String>();
            let (value, line) = (text(8), text(64));
            let out = masked(&[&value], &line);
            assert!(!out.contains(&value), "{value} {line} {out}");
            let kept: usize = out.chars().filter(|c| *c != '*').count();
            assert_eq!(kept + 8 * out.matches("***").count(), line.len());
        }
    }

    #[test]
    fn what_prints_the_mask_prints_no_value() {
        assert!(!format!("{:?}", mask(&["correct-horse"])).contains("horse"));
    }
}
