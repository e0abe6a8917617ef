//! Numbers and quantities of a document against the bounds of their key, and what to say when they do not fit.

use std::time::Duration;

use super::codes::Code;
use super::fields::Value;
use super::keys::{Kind, show_milli};
use super::units::{self, UnitError, show_duration, show_size};
use crate::model::node::Budget;
use crate::model::service::Amount;

/// What a bad quantity needs.
pub(super) struct Flaw {
    pub code: Code,
    pub expected: &'static str,
    pub label: String,
    /// A good value as TOML.
    pub example: String,
    /// The units there are.
    pub units: String,
}

fn flaw(code: Code, expected: &'static str, label: &str, example: impl Into<String>, units: &str) -> Flaw {
    Flaw {
        code,
        expected,
        label: label.into(),
        example: example.into(),
        units: units.into(),
    }
}

/// `nearest`: the allowed value nearest to what is there.
fn out_of_range(bounds: String, nearest: String) -> Flaw {
    Flaw {
        code: Code::OutOfRange,
        expected: "",
        label: format!("{bounds} is allowed"),
        example: nearest,
        units: String::new(),
    }
}

const DURATION_UNITS: &str = "h, m, s, ms, as in \"1h30m\"";
const SIZE_UNITS: &str = "B, KiB, MiB, GiB, KB, MB, GB";

/// Negative and huge numbers are `None`.
pub(super) fn integer(n: &toml::de::DeInteger<'_>) -> Option<u64> {
    u64::from_str_radix(n.as_str().trim_start_matches('+'), n.radix()).ok()
}

pub(super) fn count(kind: &Kind, n: Option<u64>, negative: bool) -> Result<Value, Flaw> {
    let (min, max) = match kind {
        Kind::Count { min, max } => (*min, *max),
        Kind::Amount { max, .. } => (0, *max),
        _ => (0, u64::MAX),
    };
    let n = n.filter(|n| (min..=max).contains(n)).ok_or_else(|| {
        let nearest = if negative || n.is_some_and(|n| n < min) {
            min
        } else {
            max
        };
        out_of_range(format!("a whole number from {min} to {max}"), nearest.to_string())
    })?;
    Ok(match kind {
        Kind::Amount { .. } => Value::Amount(Amount::Count(u32::try_from(n).unwrap_or(u32::MAX))),
        _ => Value::Count(n),
    })
}

pub(super) fn within_milli(n: Option<u64>, min: u64, max: u64) -> Result<Value, Flaw> {
    n.filter(|n| (min..=max).contains(n)).map(Value::Count).ok_or_else(|| {
        let nearest = if n.is_some_and(|n| n > max) { max } else { min };
        let bounds = format!(
            "a number from {} to {} with at most three decimals",
            show_milli(min),
            show_milli(max)
        );
        out_of_range(bounds, show_milli(nearest))
    })
}

/// `2.5` as 2500, without a detour over floating point.
pub(super) fn milli(text: &str) -> Option<u64> {
    let (whole, fraction) = text.trim_start_matches('+').split_once('.')?;
    let fraction = fraction.trim_end_matches('0');
    if fraction.len() > 3 || !fraction.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    let part = format!("{fraction:0<3}").parse::<u64>().ok()?;
    whole.parse::<u64>().ok()?.checked_mul(1000)?.checked_add(part)
}

/// A text with a unit.
pub(super) fn quantity(kind: &Kind, text: &str) -> Result<Value, Flaw> {
    let failed = |error: UnitError| match error {
        UnitError::NoUnit => no_unit(kind, text),
        UnitError::TooLarge => too_large(kind),
        UnitError::Syntax => match kind {
            Kind::Duration { .. } => flaw(
                Code::BadDuration,
                "a duration",
                "not a duration",
                "\"30s\"",
                DURATION_UNITS,
            ),
            Kind::Size { .. } => flaw(Code::BadSize, "a size", "not a size", "\"64MiB\"", SIZE_UNITS),
            Kind::Rate => flaw(Code::BadRate, "a rate", "not a rate", "\"200/s\"", "/s, /m"),
            Kind::Budget { .. } => flaw(
                Code::BadSize,
                "a size or a percentage",
                "neither a size nor a percentage",
                "\"50%\"",
                "%, B, KiB, MiB, GiB, KB, MB, GB",
            ),
            _ => flaw(
                Code::BadPercent,
                "a whole number or a percentage",
                "not a percentage",
                "\"50%\"",
                "%, or a whole number without quotes",
            ),
        },
    };
    match kind {
        Kind::Duration { min, max } => {
            let d = units::duration(text).map_err(failed)?;
            let ms = crate::model::time::millis(d);
            if !(*min..=*max).contains(&ms) {
                return Err(outside_duration(*min, *max, ms));
            }
            Ok(Value::Duration(d))
        }
        Kind::Size { min, max } => {
            let bytes = units::size(text).map_err(failed)?;
            if !(*min..=*max).contains(&bytes) {
                return Err(outside_size(*min, *max, bytes));
            }
            Ok(Value::Bytes(bytes))
        }
        Kind::Rate => {
            let rate = units::rate(text).map_err(failed)?;
            let seconds = u32::try_from(rate.per.as_secs()).unwrap_or(u32::MAX);
            if !rate.count.is_multiple_of(seconds) || rate.count == 0 {
                let near = (rate.count / seconds).max(1);
                return Err(flaw(
                    Code::BadRate,
                    "a whole number of events per second",
                    "not whole per second",
                    format!("\"{near}/s\""),
                    "/s, /m",
                ));
            }
            Ok(Value::Count(u64::from(rate.count / seconds)))
        }
        Kind::Budget { min } => {
            if text.ends_with('%') {
                let percent = units::percent(text).map_err(failed)?;
                if !(1..=100).contains(&percent) {
                    return Err(out_of_range("1% to 100%".into(), "\"50%\"".into()));
                }
                return Ok(Value::Budget(Budget::Percent(percent)));
            }
            let bytes = units::size(text).map_err(failed)?;
            if bytes < *min {
                return Err(outside_size(*min, u64::MAX, bytes));
            }
            Ok(Value::Budget(Budget::Bytes(bytes)))
        }
        Kind::Amount { max_percent, .. } => {
            let percent = match units::percent(text) {
                Err(UnitError::NoUnit) => {
                    let short: String = text.chars().take(20).collect();
                    let (percent, units) = (
                        format!("\"{short}%\""),
                        "%, or a whole number of replicas without quotes",
                    );
                    return Err(flaw(
                        Code::BadPercent,
                        "a whole number or a percentage",
                        "a number in quotes",
                        percent,
                        units,
                    ));
                }
                other => other.map_err(failed)?,
            };
            if percent > *max_percent {
                return Err(out_of_range(
                    format!("0% to {max_percent}%"),
                    format!("\"{max_percent}%\""),
                ));
            }
            Ok(Value::Amount(Amount::Percent(percent)))
        }
        _ => Err(failed(UnitError::Syntax)),
    }
}

/// A bare number: the help shows the number with the unit that was most likely meant.
pub(super) fn no_unit(kind: &Kind, number: &str) -> Flaw {
    let short: String = number.chars().take(20).collect();
    let whole = if short.contains('.') { "1" } else { short.as_str() };
    let (example, units) = match kind {
        Kind::Duration { .. } => (format!("\"{whole}s\""), DURATION_UNITS),
        Kind::Size { .. } => (format!("\"{short}MiB\""), SIZE_UNITS),
        Kind::Rate => (format!("\"{whole}/s\""), "/s, /m"),
        Kind::Budget { .. } => (format!("\"{short}MiB\""), "%, B, KiB, MiB, GiB, KB, MB, GB"),
        _ => (format!("\"{whole}%\""), "%"),
    };
    flaw(Code::NeedsUnit, "", "a number alone", example, units)
}

fn too_large(kind: &Kind) -> Flaw {
    match kind {
        Kind::Duration { min, max } => outside_duration(*min, *max, u64::MAX),
        Kind::Size { min, max } => outside_size(*min, *max, u64::MAX),
        Kind::Budget { min } => outside_size(*min, u64::MAX, u64::MAX),
        Kind::Amount { max_percent, .. } => {
            out_of_range(format!("0% to {max_percent}%"), format!("\"{max_percent}%\""))
        }
        _ => out_of_range("at most 4294967295".into(), "\"200/s\"".into()),
    }
}

fn outside_duration(min: u64, max: u64, ms: u64) -> Flaw {
    let show = |ms: u64| show_duration(Duration::from_millis(ms));
    out_of_range(
        format!("{} to {}", show(min), show(max)),
        format!("\"{}\"", show(ms.clamp(min, max))),
    )
}

fn outside_size(min: u64, max: u64, bytes: u64) -> Flaw {
    if max == u64::MAX {
        return out_of_range(format!("{} or more", show_size(min)), format!("\"{}\"", show_size(min)));
    }
    out_of_range(
        format!("{} to {}", show_size(min), show_size(max)),
        format!("\"{}\"", show_size(bytes.clamp(min, max))),
    )
}
