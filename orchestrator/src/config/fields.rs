//! What was read from a document: values in their units, with their places. Defaults are filled in; nothing is interpreted.

use std::collections::BTreeMap;
use std::ops::Range;
use std::time::Duration;

use crate::model::node::Budget;
use crate::model::service::Amount;

/// One value that was read.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    Text(String),
    Bool(bool),
    /// Also thousandths, and events per second.
    Count(u64),
    Duration(Duration),
    Bytes(u64),
    Amount(Amount),
    Budget(Budget),
    List(Vec<Item>),
    Map(BTreeMap<String, String>),
    Table(Fields),
    Tables(Vec<Fields>),
}

/// A text of an array, and its place.
#[derive(Clone, Debug, PartialEq)]
pub struct Item {
    pub text: String,
    pub span: Range<usize>,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Field {
    pub value: Value,
    /// Of the value; empty for a default.
    pub span: Range<usize>,
    /// Written in the file, not a default.
    pub given: bool,
}

/// A table that was read: every key that has a value or a default. After a read without problems every getter finds its key; after
/// one with problems the fields are not used.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Fields {
    pub entries: BTreeMap<&'static str, Field>,
    /// The header, or the whole inline table.
    pub span: Range<usize>,
    /// Keys that are written with a value that was refused: told already.
    pub refused: Vec<&'static str>,
}

impl Fields {
    pub fn get(&self, key: &str) -> Option<&Value> {
        self.entries.get(key).map(|f| &f.value)
    }

    pub fn given(&self, key: &str) -> bool {
        self.entries.get(key).is_some_and(|f| f.given)
    }

    /// Written in the file, with a good value or a bad one.
    pub fn written(&self, key: &str) -> bool {
        self.given(key) || self.refused.contains(&key)
    }

    /// Place of a value, else of the table.
    pub fn span(&self, key: &str) -> Range<usize> {
        self.entries
            .get(key)
            .filter(|f| f.given)
            .map_or(self.span.clone(), |f| f.span.clone())
    }

    pub fn opt_text(&self, key: &str) -> Option<&str> {
        if let Some(Value::Text(t)) = self.get(key) {
            Some(t)
        } else {
            None
        }
    }

    pub fn text(&self, key: &str) -> &str {
        self.opt_text(key).unwrap_or_default()
    }

    pub fn bool(&self, key: &str) -> bool {
        matches!(self.get(key), Some(Value::Bool(true)))
    }

    pub fn opt_count(&self, key: &str) -> Option<u32> {
        if let Some(Value::Count(n)) = self.get(key) {
            u32::try_from(*n).ok()
        } else {
            None
        }
    }

    pub fn count(&self, key: &str) -> u32 {
        self.opt_count(key).unwrap_or_default()
    }

    pub fn duration(&self, key: &str) -> Duration {
        if let Some(Value::Duration(d)) = self.get(key) {
            *d
        } else {
            Duration::ZERO
        }
    }

    pub fn bytes(&self, key: &str) -> u64 {
        if let Some(Value::Bytes(n)) = self.get(key) {
            *n
        } else {
            0
        }
    }

    pub fn amount(&self, key: &str) -> Amount {
        if let Some(Value::Amount(a)) = self.get(key) {
            *a
        } else {
            Amount::Count(0)
        }
    }

    pub fn budget(&self, key: &str) -> Budget {
        if let Some(Value::Budget(b)) = self.get(key) {
            *b
        } else {
            Budget::Percent(0)
        }
    }

    pub fn list(&self, key: &str) -> &[Item] {
        if let Some(Value::List(l)) = self.get(key) {
            l
        } else {
            &[]
        }
    }

    pub fn map(&self, key: &str) -> BTreeMap<String, String> {
        if let Some(Value::Map(m)) = self.get(key) {
            m.clone()
        } else {
            BTreeMap::new()
        }
    }

    pub fn tables(&self, key: &str) -> &[Self] {
        if let Some(Value::Tables(t)) = self.get(key) {
            t
        } else {
            &[]
        }
    }

    /// An inner table; a static empty one when it is missing.
    pub fn sub(&self, key: &str) -> &Self {
        static NONE: Fields = Fields {
            entries: BTreeMap::new(),
            span: 0..0,
            refused: Vec::new(),
        };
        if let Some(Value::Table(t)) = self.get(key) {
            t
        } else {
            &NONE
        }
    }
}
