//! What a key is: the form of the one table that drives reading, messages, schema, environment variables and printing.
//! Holds no key itself: those are in `service_keys` and `node_keys`.

use super::checks::Check;

/// The keys of one table of a file, in the order they are shown.
#[derive(Debug)]
pub struct Table {
    pub keys: &'static [Key],
}

#[derive(Debug)]
pub struct Key {
    pub name: &'static str,
    pub kind: Kind,
    /// As TOML; `None`: absent has no effect, or the value depends on the machine or the module.
    pub default: Option<&'static str>,
    /// One line for people.
    pub doc: &'static str,
    pub required: bool,
    pub status: Status,
    /// Of a node file: a reload applies it without a restart.
    pub live: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    Now,
    /// Refused by name until its feature exists.
    Later,
}

/// What a value may be.
#[derive(Debug)]
pub enum Kind {
    Text(&'static Check),
    Bool,
    /// A switch of which only one position works yet.
    Only(bool),
    /// A whole number.
    Count {
        min: u64,
        max: u64,
    },
    /// A number with up to three decimals, kept in thousandths.
    Milli {
        min: u64,
        max: u64,
    },
    /// Bounds in milliseconds.
    Duration {
        min: u64,
        max: u64,
    },
    /// Bounds in bytes.
    Size {
        min: u64,
        max: u64,
    },
    /// Whole events per second.
    Rate,
    /// A whole number or a percentage.
    Amount {
        max: u64,
        max_percent: u32,
    },
    /// A size or a percentage of what there is.
    Budget {
        min: u64,
    },
    /// One of `now`; `later` are refused by name.
    Choice {
        now: &'static [&'static str],
        later: &'static [&'static str],
    },
    /// An array of texts.
    List(&'static Check),
    /// An array that must be empty until its feature exists.
    Empty,
    /// An array of choices.
    Choices {
        now: &'static [&'static str],
        later: &'static [&'static str],
    },
    /// Names the file's writer chooses, with texts.
    Map {
        key: &'static Check,
        value: &'static Check,
    },
    Table(&'static Table),
    /// `[[name]]`.
    Tables(&'static Table),
    /// Of a later feature: nothing is read.
    Any,
}

impl Key {
    pub const fn new(name: &'static str, kind: Kind, doc: &'static str) -> Self {
        Self {
            name,
            kind,
            default: None,
            doc,
            required: false,
            status: Status::Now,
            live: false,
        }
    }

    /// A key whose feature comes later.
    pub const fn later(name: &'static str, doc: &'static str) -> Self {
        Self {
            name,
            kind: Kind::Any,
            default: None,
            doc,
            required: false,
            status: Status::Later,
            live: false,
        }
    }

    #[must_use]
    pub const fn default(mut self, toml: &'static str) -> Self {
        self.default = Some(toml);
        self
    }

    #[must_use]
    pub const fn required(mut self) -> Self {
        self.required = true;
        self
    }

    #[must_use]
    pub const fn live(mut self) -> Self {
        self.live = true;
        self
    }
}

impl Table {
    pub fn get(&self, name: &str) -> Option<&'static Key> {
        self.keys.iter().find(|k| k.name == name)
    }

    /// Names that may be written today.
    pub fn allowed(&self) -> impl Iterator<Item = &'static str> {
        self.keys.iter().filter(|k| k.status == Status::Now).map(|k| k.name)
    }

    /// Every key that may be written today with its path, tables before their keys.
    pub fn walk(&'static self) -> Vec<(String, &'static Key)> {
        let mut out = Vec::new();
        self.walk_into("", &mut out);
        out
    }

    fn walk_into(&'static self, prefix: &str, out: &mut Vec<(String, &'static Key)>) {
        for key in self.keys.iter().filter(|k| k.status == Status::Now) {
            let path = if prefix.is_empty() {
                key.name.to_owned()
            } else {
                format!("{prefix}.{}", key.name)
            };
            out.push((path.clone(), key));
            if let Kind::Table(table) | Kind::Tables(table) = &key.kind {
                table.walk_into(&path, out);
            }
        }
    }
}

impl Kind {
    /// What is expected, for messages: `a duration such as "30s"`.
    pub fn expected(&self) -> String {
        match self {
            Self::Text(check) => format!("{} in quotes", check.expected),
            Self::Bool => "true or false".into(),
            Self::Only(value) => format!("{value}"),
            Self::Count { min, max } => format!("a whole number from {min} to {max}"),
            Self::Milli { min, max } => format!("a number from {} to {}", show_milli(*min), show_milli(*max)),
            Self::Duration { .. } => "a duration such as \"30s\"".into(),
            Self::Size { .. } => "a size such as \"64MiB\"".into(),
            Self::Rate => "a rate such as \"200/s\"".into(),
            Self::Amount { .. } => "a whole number or a percentage such as \"50%\"".into(),
            Self::Budget { .. } => "a size such as \"512MiB\" or a percentage such as \"50%\"".into(),
            Self::Choice { now, .. } => format!("one of {}", quoted_list(now)),
            Self::List(check) => format!("an array of texts, each {}", check.expected),
            Self::Empty => "an empty array".into(),
            Self::Choices { now, .. } => format!("an array of {}", quoted_list(now)),
            Self::Map { value, .. } => format!("a table of names, each with {} in quotes", value.expected),
            Self::Table(_) => "a table".into(),
            Self::Tables(_) => "an array of tables".into(),
            Self::Any => "nothing yet".into(),
        }
    }

    /// An example of a good value, as TOML.
    pub fn example(&self) -> &'static str {
        match self {
            Self::Text(check) => check.example,
            Self::Bool => "true",
            Self::Only(value) => {
                if *value {
                    "true"
                } else {
                    "false"
                }
            }
            Self::Count { .. } => "4",
            Self::Milli { .. } => "2.0",
            Self::Duration { .. } => "\"30s\"",
            Self::Size { .. } => "\"64MiB\"",
            Self::Rate => "\"200/s\"",
            Self::Amount { .. } | Self::Budget { .. } => "\"50%\"",
            Self::Choice { now, .. } => now.first().copied().unwrap_or_default(),
            Self::List(check) => check.list_example,
            Self::Empty => "[]",
            Self::Choices { .. } => "[\"wasm\"]",
            Self::Map { .. } => "{ NAME = \"text\" }",
            Self::Table(_) | Self::Any => "{}",
            Self::Tables(_) => "[{}]",
        }
    }
}

/// `"a", "b"`.
pub fn quoted_list(items: &[&str]) -> String {
    items.iter().map(|i| format!("\"{i}\"")).collect::<Vec<_>>().join(", ")
}

/// Thousandths as people write them: `2.0`, `1.25`.
pub fn show_milli(milli: u64) -> String {
    let text = format!("{}.{:03}", milli / 1000, milli % 1000);
    let short = text.trim_end_matches('0');
    if short.ends_with('.') {
        format!("{short}0")
    } else {
        short.to_owned()
    }
}
