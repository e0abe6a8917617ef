//! The stable code of every mistake, and the chapter that `narae help CODE` prints offline. A code is never given a new meaning.
//!
//! Chapters are kept as text in `chapters.md`: `## E0042: title`, then the chapter.

use std::fmt;

macro_rules! codes {
    ($($(#[$doc:meta])* $name:ident = $code:literal,)*) => {
        /// What went wrong, for machines and for `narae help`.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub enum Code { $($(#[$doc])* $name,)* }

        impl Code {
            /// Every code, in order.
            pub const ALL: &[Self] = &[$(Self::$name,)*];

            /// `E0042`.
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$name => $code,)* }
            }
        }
    };
}

codes! {
    // Any file.
    FileTooLarge = "E0001",
    Syntax = "E0002",
    DuplicateKey = "E0003",
    TooMany = "E0004",
    NotUtf8 = "E0005",
    CannotRead = "E0006",
    WrongType = "E0040",
    MissingKey = "E0041",
    UnknownKey = "E0042",
    NotSupportedYet = "E0043",
    NotAChoice = "E0044",
    BadDuration = "E0045",
    BadSize = "E0046",
    BadRate = "E0047",
    BadPercent = "E0048",
    OutOfRange = "E0049",
    NeedsUnit = "E0050",
    BadText = "E0051",
    // The service file.
    BadServiceName = "E0101",
    BadModule = "E0102",
    BadDigest = "E0103",
    BadHost = "E0104",
    BadPath = "E0105",
    DuplicateRoute = "E0106",
    BadVariableName = "E0107",
    BadTarget = "E0108",
    BadStoreName = "E0109",
    BadDependency = "E0110",
    Contradiction = "E0111",
    NeverReached = "E0112",
    RouteTaken = "E0120",
    OverBudget = "E0121",
    UnknownDependency = "E0122",
    DependencyCycle = "E0123",
    DuplicateService = "E0124",
    BadShare = "E0130",
    BadSteps = "E0131",
    BadGate = "E0132",
    BadPin = "E0133",
    NoRollout = "E0134",
    BadScaleTarget = "E0140",
    // [[schedule]].
    BadCron = "E0145",
    CronNeverFires = "E0146",
    UnknownZone = "E0147",
    BadTime = "E0148",
    ScheduleIncomplete = "E0149",
    DuplicateSchedule = "E0150",
    ScheduleClock = "E0151",
    SchedulePast = "E0152",
    ScheduleWorld = "E0153",
    UnknownSchedule = "E0154",
    // Jobs.
    NotForThisWorld = "E0155",
    KindChanges = "E0156",
    UnknownRun = "E0157",
    RunRefused = "E0158",
    BadVolumeName = "E0165",
    BadMount = "E0166",
    BadBackend = "E0170",
    BadCredential = "E0171",
    UnknownCallee = "E0172",
    BadSecretName = "E0180",
    VariableTwice = "E0181",
    UnknownSecret = "E0182",
    CapabilitiesWanted = "E0183",
    SecretInUse = "E0184",
    SecretRefused = "E0185",
    SecretsKey = "E0186",
    // The node file.
    BadAddress = "E0201",
    AdminNotLoopback = "E0202",
    BadVariable = "E0203",
    BadAssignment = "E0204",
    BadNodePath = "E0205",
    DuplicateAddress = "E0206",
    // Modules.
    NotWasm = "E0301",
    ModuleTooLarge = "E0302",
    ModuleMalformed = "E0303",
    UnsupportedExports = "E0304",
    ImportNotOffered = "E0305",
    DigestMismatch = "E0306",
    WorldMismatch = "E0308",
    CannotCompile = "E0309",
    BadWat = "E0310",
    // The API.
    UnknownService = "E0401",
    UnknownRevision = "E0402",
    PreconditionFailed = "E0403",
    Unauthorized = "E0404",
    TooManyGuesses = "E0405",
    BadBody = "E0406",
    UnknownModule = "E0407",
    NameMismatch = "E0408",
    BadRequest = "E0409",
    Internal = "E0410",
    // Command line and daemon.
    DaemonUnreachable = "E0501",
    SocketPathTooLong = "E0502",
    NotPermitted = "E0503",
    AddressInUse = "E0504",
    AlreadyRunning = "E0505",
    StoreUnreadable = "E0506",
    RolledBack = "E0507",
    WaitTimedOut = "E0508",
    OutsideAutoscale = "E0630",
    // Crash reports.
    UnknownCrash = "E0650",
}

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

const CHAPTERS: &str = include_str!("chapters.md");

impl Code {
    /// `unknown key`.
    pub fn title(self) -> &'static str {
        explain(self.as_str())
            .and_then(|chapter| chapter.lines().next())
            .and_then(|line| line.split_once(": "))
            .map_or("", |(_, title)| title)
    }
}

/// The chapter of a code, `e42` and `E0042` alike: first line `E0042: unknown key`, then what it means, why, a mistake and its
/// repair.
pub fn explain(code: &str) -> Option<&'static str> {
    let digits = code.trim().strip_prefix(['E', 'e'])?;
    if digits.is_empty() || digits.len() > 4 || !digits.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    chapters().find(|c| c.get(1..5) == Some(format!("{digits:0>4}").as_str()))
}

/// Every chapter, without the heading marks.
pub fn chapters() -> impl Iterator<Item = &'static str> {
    CHAPTERS.split("\n## ").skip(1).map(str::trim_end)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_code_has_a_chapter_with_title_explanation_and_example() {
        for code in Code::ALL {
            let chapter = explain(code.as_str()).unwrap_or_else(|| panic!("{code} has no chapter"));
            let lines = chapter.lines().count();
            assert!((5..=24).contains(&lines), "{code}: {lines} lines");
            assert!(!code.title().is_empty(), "{code}");
            assert!(chapter.contains("    "), "{code} shows no example");
        }
    }

    #[test]
    fn chapters_and_codes_are_unique_and_of_one_form() {
        let mut seen = std::collections::BTreeSet::new();
        for code in Code::ALL {
            assert!(seen.insert(code.as_str()), "{code} twice");
            assert!(code.as_str().len() == 5 && code.as_str().starts_with('E'));
        }
        let headings: Vec<&str> = chapters().map(|c| &c[..5]).collect();
        assert_eq!(
            headings,
            seen.into_iter().collect::<Vec<_>>(),
            "one chapter for each code, in order"
        );
        let bodies: std::collections::BTreeSet<&str> = chapters().map(|c| &c[5..]).collect();
        assert_eq!(bodies.len(), Code::ALL.len());
    }

    /// The lines under `Wrong:` or `Right:`.
    fn example(code: Code, which: &str) -> String {
        let chapter = explain(code.as_str()).unwrap();
        let block = chapter
            .split_once(&format!("{which}:\n\n"))
            .unwrap_or_else(|| panic!("{code}: no {which}"))
            .1;
        block
            .lines()
            .map_while(|l| l.strip_prefix("    ").or(l.is_empty().then_some("")))
            .map(|l| format!("{l}\n"))
            .collect()
    }

    #[test]
    fn the_mistakes_shown_for_a_service_file_are_mistakes_and_the_repairs_repair() {
        for code in Code::ALL
            .iter()
            .copied()
            .filter(|c| (2..=112).contains(&c.as_str()[1..].parse::<u32>().unwrap()))
        {
            if matches!(code, Code::TooMany | Code::NotUtf8 | Code::CannotRead) {
                continue;
            }
            let whole = |text: String| {
                let name = if text.contains("name =") && !text.contains("[[keyvalue]]") {
                    ""
                } else {
                    "name = \"a\"\n"
                };
                let module = if text.contains("module =") {
                    ""
                } else {
                    "module = \"a.wasm\"\n"
                };
                format!("{name}{module}{text}")
            };
            let wrong = example(code, "Wrong");
            let wrong = if code == Code::MissingKey { wrong } else { whole(wrong) };
            let found = super::super::service(&wrong, "x").map_or_else(|p| p, |c| c.warnings);
            assert!(found.iter().any(|p| p.code == code), "{code}: {wrong}{found:?}");
            let right = whole(example(code, "Right"));
            let found = super::super::service(&right, "x").map_or_else(|p| p, |c| c.warnings);
            assert!(found.is_empty(), "{code}: {right}{found:?}");
        }
    }

    #[test]
    fn the_mistakes_shown_for_a_node_file_are_mistakes_and_the_repairs_repair() {
        for code in [
            Code::BadAddress,
            Code::AdminNotLoopback,
            Code::BadNodePath,
            Code::DuplicateAddress,
        ] {
            let found = super::super::node(&example(code, "Wrong"), "x").unwrap_err();
            assert!(found.iter().all(|p| p.code == code), "{code}: {found:?}");
            super::super::node(&example(code, "Right"), "x").unwrap();
        }
    }

    #[test]
    fn a_code_is_found_however_it_is_typed() {
        assert!(explain("E0042").is_some_and(|c| c.starts_with("E0042: unknown key")));
        assert_eq!(explain("e42"), explain("E0042"));
        for nonsense in ["", "E", "42", "E99999", "E9999", "Eé", "E00\u{1b}"] {
            assert_eq!(explain(nonsense), None, "{nonsense:?}");
        }
    }
}
