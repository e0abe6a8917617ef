//! Durations, sizes, rates and shares as people write them, and back. What a text cannot say exactly is refused, not rounded.

use std::time::Duration;

/// Why a text is no quantity.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UnitError {
    /// A number alone.
    NoUnit,
    /// Not of the form at all.
    Syntax,
    /// More than can be counted.
    TooLarge,
}

/// `500ms`, `30s`, `5m`, `1h30m`: whole numbers with the units h, m, s, ms, the larger first, each at most once.
pub fn duration(text: &str) -> Result<Duration, UnitError> {
    const UNITS: [(&str, u64); 4] = [("h", 3_600_000), ("m", 60_000), ("s", 1_000), ("ms", 1)];
    if !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit()) {
        return Err(UnitError::NoUnit);
    }
    let (mut rest, mut allowed, mut total) = (text, &UNITS[..], 0_u64);
    loop {
        let digits = rest.len() - rest.trim_start_matches(|c: char| c.is_ascii_digit()).len();
        let (number, tail) = rest.split_at(digits);
        let unit_len = tail.find(|c: char| !c.is_ascii_alphabetic()).unwrap_or(tail.len());
        let (unit, tail) = tail.split_at(unit_len);
        let at = allowed
            .iter()
            .position(|(name, _)| *name == unit)
            .ok_or(UnitError::Syntax)?;
        if number.is_empty() {
            return Err(UnitError::Syntax);
        }
        let part = number
            .parse::<u64>()
            .ok()
            .and_then(|n| n.checked_mul(allowed[at].1))
            .ok_or(UnitError::TooLarge)?;
        total = total.checked_add(part).ok_or(UnitError::TooLarge)?;
        allowed = &allowed[at + 1..];
        rest = tail;
        if rest.is_empty() {
            return Ok(Duration::from_millis(total));
        }
    }
}

/// The shortest text that [`duration`] reads as the same; less than a millisecond is dropped.
pub fn show_duration(d: Duration) -> String {
    let mut ms = crate::model::time::millis(d);
    if ms == 0 {
        return "0s".into();
    }
    let mut out = String::new();
    for (unit, size) in [("h", 3_600_000), ("m", 60_000), ("s", 1_000), ("ms", 1)] {
        if ms >= size {
            out += &format!("{}{unit}", ms / size);
            ms %= size;
        }
    }
    out
}

const SIZES: [(&str, u64); 7] = [
    ("GiB", 1 << 30),
    ("MiB", 1 << 20),
    ("KiB", 1 << 10),
    ("GB", 1_000_000_000),
    ("MB", 1_000_000),
    ("KB", 1_000),
    ("B", 1),
];

/// Bytes: `64MiB`, `1.5GiB`, `100KB`. Binary units by their binary names, powers of ten by theirs.
pub fn size(text: &str) -> Result<u64, UnitError> {
    let digits = text
        .find(|c: char| !c.is_ascii_digit() && c != '.')
        .unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let (whole, fraction) = number.split_once('.').unwrap_or((number, "0"));
    let all_digits = |t: &str| !t.is_empty() && t.bytes().all(|b| b.is_ascii_digit());
    if !all_digits(whole) || !all_digits(fraction) {
        return Err(UnitError::Syntax);
    }
    if unit.is_empty() {
        return Err(UnitError::NoUnit);
    }
    let (_, factor) = SIZES
        .iter()
        .find(|(name, _)| *name == unit.trim_start())
        .ok_or(UnitError::Syntax)?;
    let whole = whole
        .parse::<u64>()
        .ok()
        .and_then(|n| n.checked_mul(*factor))
        .ok_or(UnitError::TooLarge)?;
    // At most nine decimals, and the result in whole bytes.
    let fraction = fraction.trim_end_matches('0');
    let places = u32::try_from(fraction.len())
        .ok()
        .filter(|p| *p <= 9)
        .ok_or(UnitError::Syntax)?;
    let part = u128::from(fraction.parse::<u64>().unwrap_or(0)) * u128::from(*factor);
    let scale = 10_u128.pow(places);
    if part % scale != 0 {
        return Err(UnitError::Syntax);
    }
    u64::try_from(part / scale)
        .ok()
        .and_then(|part| whole.checked_add(part))
        .ok_or(UnitError::TooLarge)
}

/// The shortest text that [`size`] reads as the same.
pub fn show_size(bytes: u64) -> String {
    let (unit, factor) = SIZES
        .iter()
        .find(|(_, f)| bytes >= *f && bytes.is_multiple_of(*f))
        .unwrap_or(&("B", 1));
    format!("{}{unit}", bytes / factor)
}

/// Events per time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate {
    pub count: u32,
    pub per: Duration,
}

/// `200/s`, `30/m`.
pub fn rate(text: &str) -> Result<Rate, UnitError> {
    if !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit()) {
        return Err(UnitError::NoUnit);
    }
    let (number, unit) = text.split_once('/').ok_or(UnitError::Syntax)?;
    if number.is_empty() || !number.bytes().all(|b| b.is_ascii_digit()) {
        return Err(UnitError::Syntax);
    }
    let per = match unit {
        "s" => Duration::from_secs(1),
        "m" => Duration::from_secs(60),
        _ => return Err(UnitError::Syntax),
    };
    Ok(Rate {
        count: number.parse().map_err(|_| UnitError::TooLarge)?,
        per,
    })
}

/// `50%`: a whole number of hundredths.
pub fn percent(text: &str) -> Result<u32, UnitError> {
    if !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit()) {
        return Err(UnitError::NoUnit);
    }
    let number = text.strip_suffix('%').ok_or(UnitError::Syntax)?;
    if number.is_empty() || !number.bytes().all(|b| b.is_ascii_digit()) {
        return Err(UnitError::Syntax);
    }
    number.parse().map_err(|_| UnitError::TooLarge)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn durations_are_whole_numbers_with_units_the_larger_first() {
        for (text, ms) in [
            ("500ms", 500),
            ("30s", 30_000),
            ("5m", 300_000),
            ("1h30m", 5_400_000),
            ("1m30s5ms", 90_005),
            ("0s", 0),
            ("90m", 5_400_000),
        ] {
            assert_eq!(duration(text), Ok(Duration::from_millis(ms)), "{text}");
        }
        for text in [
            "", "s", "1.5s", "-1s", "1s1s", "1s1m", "1 s", "1d", "1S", "1sec", " 1s", "1s ", "1sx", "١s", "1µs",
            "1ms1s",
        ] {
            assert_eq!(duration(text), Err(UnitError::Syntax), "{text}");
        }
        assert_eq!(duration("30"), Err(UnitError::NoUnit));
        assert_eq!(duration("99999999999999999999s"), Err(UnitError::TooLarge));
        assert_eq!(duration("18446744073709551615h"), Err(UnitError::TooLarge));
    }

    #[test]
    fn sizes_name_binary_units_and_powers_of_ten_apart() {
        for (text, bytes) in [
            ("64KiB", 65_536),
            ("64KB", 64_000),
            ("1MiB", 1 << 20),
            ("1MB", 1_000_000),
            ("1.5GiB", 1_610_612_736),
            ("2GB", 2_000_000_000),
            ("7B", 7),
            ("0B", 0),
            ("64 MiB", 64 << 20),
        ] {
            assert_eq!(size(text), Ok(bytes), "{text}");
        }
        for text in [
            "",
            "MiB",
            "64M",
            "64mb",
            "64mib",
            "-1MiB",
            "1.2.3MiB",
            ".5MiB",
            "5.MiB",
            "0.3B",
            "1e3MiB",
            "64MiB ",
            "1TiB",
            "1.0000000001GiB",
        ] {
            assert_eq!(size(text), Err(UnitError::Syntax), "{text}");
        }
        assert_eq!(size("64"), Err(UnitError::NoUnit));
        assert_eq!(size("99999999999GiB"), Err(UnitError::TooLarge));
        assert_eq!(size("99999999999999999999999B"), Err(UnitError::TooLarge));
    }

    #[test]
    fn rates_and_percentages_need_their_unit() {
        assert_eq!(
            rate("200/s"),
            Ok(Rate {
                count: 200,
                per: Duration::from_secs(1)
            })
        );
        assert_eq!(
            rate("30/m"),
            Ok(Rate {
                count: 30,
                per: Duration::from_secs(60)
            })
        );
        assert_eq!(rate("200"), Err(UnitError::NoUnit));
        for text in ["", "/s", "200/h", "200 /s", "200/", "-1/s", "2.5/s"] {
            assert_eq!(rate(text), Err(UnitError::Syntax), "{text}");
        }
        assert_eq!(rate("99999999999/s"), Err(UnitError::TooLarge));
        assert_eq!(percent("50%"), Ok(50));
        assert_eq!(percent("50"), Err(UnitError::NoUnit));
        for text in ["", "%", "50 %", "-1%", "1.5%", "50%%"] {
            assert_eq!(percent(text), Err(UnitError::Syntax), "{text}");
        }
    }

    proptest! {
        #[test]
        fn what_is_shown_reads_back_as_the_same(ms in 0_u64..u64::MAX / 2, bytes: u64) {
            prop_assert_eq!(duration(&show_duration(Duration::from_millis(ms))), Ok(Duration::from_millis(ms)));
            prop_assert_eq!(size(&show_size(bytes)), Ok(bytes));
        }

        #[test]
        fn no_text_panics(text in ".{0,40}") {
            let _ = (duration(&text), size(&text), rate(&text), percent(&text));
        }
    }
}
