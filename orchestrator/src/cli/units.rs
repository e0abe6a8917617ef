//! Numbers as people write and read them: durations, ages, sizes, rates. Pure; the time is an argument.

use std::borrow::Cow;
use std::time::Duration;

/// Seconds as two units at most, zero ones left out: `3m12s`, `6m`, `2d4h`, `9d`, `0s`.
pub fn age(d: Duration) -> String {
    const UNITS: [(u64, &str); 4] = [(86_400, "d"), (3_600, "h"), (60, "m"), (1, "s")];
    let seconds = d.as_secs();
    let Some(first) = UNITS.iter().position(|(size, _)| seconds >= *size) else {
        return "0s".into();
    };
    let (size, name) = UNITS[first];
    let mut text = format!("{}{name}", seconds / size);
    if let Some((next, next_name)) = UNITS.get(first + 1) {
        let rest = (seconds % size) / next;
        if rest > 0 {
            text.push_str(&format!("{rest}{next_name}"));
        }
    }
    text
}

/// Age of an RFC 3339 time at `now`; `-` when it is none, `0s` when it lies ahead (clocks differ).
pub fn age_of(at: &str, now: jiff::Timestamp) -> String {
    let Ok(at) = at.parse::<jiff::Timestamp>() else {
        return "-".into();
    };
    age(Duration::try_from(now.duration_since(at)).unwrap_or_default())
}

/// Milliseconds with one decimal below ten: `2.1ms`, `18ms`, `1.2s`.
pub fn latency(ms: f64) -> String {
    if !ms.is_finite() || ms < 0.0 {
        return "-".into();
    }
    if ms >= 1_000.0 {
        format!("{}s", short(ms / 1_000.0))
    } else {
        format!("{}ms", short(ms))
    }
}

/// A rate or count, one decimal below ten: `812`, `9.5`, `0`.
pub fn short(n: f64) -> String {
    if !n.is_finite() || n < 0.0 {
        return "-".into();
    }
    if n < 9.95 { tenths(n) } else { format!("{n:.0}") }
}

/// Binary units with one decimal: `5.8MiB`, `41MiB`, `512B`.
pub fn size(bytes: u64) -> String {
    const UNITS: [&str; 5] = ["KiB", "MiB", "GiB", "TiB", "PiB"];
    if bytes < 1024 {
        return format!("{bytes}B");
    }
    // In tenths of the unit, so that 1023.96KiB becomes 1MiB and not 1024KiB.
    let mut tenths = u128::from(bytes) * 10;
    let mut unit = 0;
    tenths = (tenths + 512) / 1024;
    while tenths >= 10_240 && unit + 1 < UNITS.len() {
        tenths = (tenths + 512) / 1024;
        unit += 1;
    }
    match (tenths / 10, tenths % 10) {
        (whole, 0) => format!("{whole}{}", UNITS[unit]),
        (whole, part) => format!("{whole}.{part}{}", UNITS[unit]),
    }
}

fn tenths(n: f64) -> String {
    let text = format!("{n:.1}");
    text.strip_suffix(".0").map_or(text.clone(), str::to_owned)
}

/// A duration as typed: `500ms`, `30s`, `5m`, `1h30m`, `2d`.
///
/// # Errors
/// What was expected; a bare number is none.
pub fn parse_duration(text: &str) -> Result<Duration, String> {
    const EXPECTED: &str = "expected a duration as `500ms`, `30s`, `5m` or `1h30m`";
    let mut rest = text.trim();
    if rest.bytes().all(|b| b.is_ascii_digit()) && !rest.is_empty() {
        return Err(format!("`{rest}` has no unit; did you mean `{rest}s`? {EXPECTED}"));
    }
    let mut total = Duration::ZERO;
    let mut last = u64::MAX;
    if rest.is_empty() {
        return Err(EXPECTED.into());
    }
    while !rest.is_empty() {
        let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
        let number: u64 = rest[..digits].parse().map_err(|_| EXPECTED.to_owned())?;
        rest = &rest[digits..];
        let letters = rest.bytes().take_while(u8::is_ascii_alphabetic).count();
        let unit_ms: u64 = match &rest[..letters] {
            "ms" => 1,
            "s" => 1_000,
            "m" => 60_000,
            "h" => 3_600_000,
            "d" => 86_400_000,
            _ => return Err(EXPECTED.into()),
        };
        if unit_ms >= last {
            return Err(EXPECTED.into());
        }
        last = unit_ms;
        rest = &rest[letters..];
        let part = number.checked_mul(unit_ms).ok_or("duration is too long")?;
        total = total
            .checked_add(Duration::from_millis(part))
            .ok_or("duration is too long")?;
    }
    Ok(total)
}

/// A size as typed: `64MiB`, `10MB`, `512B`.
///
/// # Errors
/// What was expected; a bare number is none.
pub fn parse_size(text: &str) -> Result<u64, String> {
    const EXPECTED: &str = "expected a size as `64MiB`, `1GiB` or `10MB`";
    let text = text.trim();
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let number: u64 = text[..digits].parse().map_err(|_| EXPECTED.to_owned())?;
    let unit: u64 = match text[digits..].trim() {
        "" => return Err(format!("`{text}` has no unit; did you mean `{text}MiB`? {EXPECTED}")),
        "B" => 1,
        "KiB" => 1 << 10,
        "MiB" => 1 << 20,
        "GiB" => 1 << 30,
        "KB" => 1_000,
        "MB" => 1_000_000,
        "GB" => 1_000_000_000,
        _ => return Err(EXPECTED.into()),
    };
    number.checked_mul(unit).ok_or_else(|| "size is too large".into())
}

/// A point in time as typed: a duration back from `now` (`10m`) or RFC 3339. Milliseconds since 1970.
///
/// # Errors
/// What was expected.
pub fn parse_moment(text: &str, now: jiff::Timestamp) -> Result<i64, String> {
    if let Ok(at) = text.parse::<jiff::Timestamp>() {
        return Ok(at.as_millisecond());
    }
    let back = parse_duration(text)
        .map_err(|_| "expected a duration back from now as `10m`, or a time as `2026-11-24T05:30:31Z`".to_owned())?;
    let back = i64::try_from(back.as_millis()).map_err(|_| "duration is too long".to_owned())?;
    Ok(now.as_millisecond().saturating_sub(back))
}

/// An operating system's error in its words, without the number: `No such file or directory`.
pub fn io_words(error: &std::io::Error) -> String {
    let text = error.to_string();
    text.split(" (os error ").next().unwrap_or(&text).to_owned()
}

/// Control characters made visible: what a guest or a file wrote must not drive the terminal.
pub fn printable(text: &str) -> Cow<'_, str> {
    // Also the marks that reorder a line (U+202A to U+202E, U+2066 to U+2069) and the line separators.
    let bad = |c: char| {
        (c.is_control() && c != '\t') || matches!(c, '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{feff}')
    };
    if !text.contains(bad) {
        return Cow::Borrowed(text);
    }
    let mut out = String::with_capacity(text.len() + 8);
    for c in text.chars() {
        if bad(c) {
            out.extend(c.escape_default())
        } else {
            out.push(c)
        }
    }
    Cow::Owned(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_age_has_two_units_at_most() {
        let of = |s| age(Duration::from_secs(s));
        assert_eq!(
            [0, 1, 59, 60, 192, 360, 3_600, 187_200, 777_600].map(of),
            ["0s", "1s", "59s", "1m", "3m12s", "6m", "1h", "2d4h", "9d"]
        );
    }

    #[test]
    fn a_time_that_lies_ahead_is_no_negative_age() {
        let now: jiff::Timestamp = "2026-11-24T05:00:00Z".parse().unwrap();
        assert_eq!(age_of("2026-11-24T05:00:09.000Z", now), "0s");
        assert_eq!(age_of("2026-11-24T04:56:48.000Z", now), "3m12s");
        assert_eq!(age_of("yesterday", now), "-");
    }

    #[test]
    fn sizes_have_binary_units_and_one_decimal() {
        let of = |b: u64| size(b);
        assert_eq!(
            [0, 512, 1_023, 1_024, 1_536, 6_081_740, 42_991_616, 1_048_575, u64::MAX].map(of),
            [
                "0B", "512B", "1023B", "1KiB", "1.5KiB", "5.8MiB", "41MiB", "1MiB", "16384PiB"
            ]
        );
    }

    #[test]
    fn latencies_and_rates_have_one_decimal_below_ten() {
        assert_eq!(
            [2.14, 18.3, 1_240.0, 0.0, f64::NAN].map(latency),
            ["2.1ms", "18ms", "1.2s", "0ms", "-"]
        );
        assert_eq!(
            [812.4, 96.0, 9.5, 9.97, 0.0].map(short),
            ["812", "96", "9.5", "10", "0"]
        );
    }

    #[test]
    fn a_duration_without_a_unit_is_refused_with_a_hint() {
        assert!(parse_duration("30").unwrap_err().contains("`30s`"));
        for bad in [
            "",
            "s",
            "5x",
            "1m1h",
            "1s1s",
            "-5s",
            "99999999999999999999s",
            "18446744073709551615d",
            "5 s",
        ] {
            assert!(parse_duration(bad).is_err(), "{bad}");
        }
        let ms = |t| parse_duration(t).unwrap().as_millis();
        assert_eq!(
            ["500ms", "30s", "5m", "1h30m"].map(ms),
            [500, 30_000, 300_000, 5_400_000]
        );
    }

    #[test]
    fn a_size_without_a_unit_is_refused_with_a_hint() {
        assert!(parse_size("64").unwrap_err().contains("64MiB"));
        assert!(parse_size("99999999999999999GiB").is_err());
        assert_eq!(parse_size("64MiB"), Ok(64 << 20));
        assert_eq!(parse_size("10MB"), Ok(10_000_000));
    }

    #[test]
    fn a_moment_is_a_time_or_a_duration_back_from_now() {
        let now: jiff::Timestamp = "2026-11-24T05:00:00Z".parse().unwrap();
        assert_eq!(parse_moment("10m", now), Ok(now.as_millisecond() - 600_000));
        assert_eq!(parse_moment("2026-11-24T05:00:00Z", now), Ok(now.as_millisecond()));
        assert!(parse_moment("noon", now).is_err());
    }

    #[test]
    fn a_guest_cannot_drive_the_terminal() {
        assert_eq!(printable("a\u{1b}[2Jb\tc"), "a\\u{1b}[2Jb\tc");
        assert_eq!(printable("a\u{202e}b"), "a\\u{202e}b");
        assert!(matches!(printable("plain ✓"), Cow::Borrowed(_)));
    }
}
