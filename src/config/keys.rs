//! What a plan may say. A section states each key once: what it is for (its doc comment), its type, its default
//! and its range. The check of a plan, its error texts and docs/config.md are all made from that.

use std::collections::BTreeMap;
use std::fmt;
use std::ops::{Bound, RangeBounds};
use std::path::PathBuf;

/// The keys of a table.
#[derive(Clone, Debug)]
pub struct Section {
    /// What the table is for: the doc comment of its type.
    pub text: &'static str,
    pub keys: Vec<Key>,
}

/// One key of a table.
#[derive(Clone, Debug)]
pub struct Key {
    pub name: &'static str,
    /// What the key is for: its doc comment.
    pub text: &'static str,
    pub kind: Kind,
    /// Whether the table may be without it.
    pub optional: bool,
}

/// What a value is.
#[derive(Clone, Debug)]
pub enum Kind {
    Whole(Range),
    Number {
        range: Range,
        /// Kept in 32 bits.
        short: bool,
    },
    Flag,
    Text,
    Path,
    Choice(&'static [Word]),
    /// Values of one kind; `length` of them, where that is given. One path may stand for a list of one.
    List {
        of: Box<Kind>,
        length: Option<usize>,
    },
    /// Texts by name.
    Names,
    Table(Section),
}

/// A value of a choice.
#[derive(Clone, Copy, Debug)]
pub struct Word {
    pub word: &'static str,
    /// What it means: the doc comment of the variant.
    pub text: &'static str,
}

impl Kind {
    /// The same, for numbers within `range` alone.
    pub fn within(self, range: Range) -> Self {
        match self {
            Self::Whole(own) => Self::Whole(own.and(range)),
            Self::Number { short, range: own } => Self::Number { short, range: own.and(range) },
            Self::List { of, length } => Self::List { of: Box::new(of.within(range)), length },
            other => other,
        }
    }
}

/// A type that a key can have.
pub trait Described {
    /// Whether a table without defaults may be without such a key.
    const OPTIONAL: bool = false;

    fn kind() -> Kind;
}

/// `Described` for types that have one kind.
macro_rules! described {
    ($($type:ty => $kind:expr;)+) => { $(
        impl Described for $type {
            fn kind() -> Kind {
                $kind
            }
        }
    )+ };
}

described! {
    u32 => Kind::Whole(Range::of(0..=u32::MAX));
    u64 => Kind::Whole(Range::of(0..));
    usize => Kind::Whole(Range::of(0..));
    f32 => Kind::Number { range: Range::FINITE, short: true };
    f64 => Kind::Number { range: Range::FINITE, short: false };
    bool => Kind::Flag;
    String => Kind::Text;
    PathBuf => Kind::Path;
    [u32; 2] => Kind::List { of: Box::new(u32::kind()), length: Some(2) };
}

impl<T: Described> Described for Option<T> {
    const OPTIONAL: bool = true;

    fn kind() -> Kind {
        T::kind()
    }
}

impl<T: Described> Described for Vec<T> {
    fn kind() -> Kind {
        Kind::List { of: Box::new(T::kind()), length: None }
    }
}

impl Described for BTreeMap<String, String> {
    const OPTIONAL: bool = true;

    fn kind() -> Kind {
        Kind::Names
    }
}

/// The numbers that a key takes. No key takes one that is not finite.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Range {
    low: Bound<f64>,
    high: Bound<f64>,
}

impl Range {
    pub const FINITE: Self = Self { low: Bound::Unbounded, high: Bound::Unbounded };

    /// From `1..`, `0.0..1.0` and their like, or from `above(0.0)`.
    pub fn of<N: Copy + Into<f64>>(bounds: impl RangeBounds<N>) -> Self {
        let own = |bound: Bound<&N>| bound.map(|&limit| limit.into());
        Self { low: own(bounds.start_bound()), high: own(bounds.end_bound()) }
    }

    pub fn holds(&self, value: f64) -> bool {
        value.is_finite() && (self.low, self.high).contains(&value)
    }

    /// `narrower` where it has a limit, else this range.
    fn and(self, narrower: Self) -> Self {
        let or = |a: Bound<f64>, b| if a == Bound::Unbounded { b } else { a };
        Self { low: or(narrower.low, self.low), high: or(narrower.high, self.high) }
    }
}

/// Numbers larger than `limit`.
pub fn above(limit: f64) -> (Bound<f64>, Bound<f64>) {
    (Bound::Excluded(limit), Bound::Unbounded)
}

/// Numbers larger than `limit`, up to `most`.
pub fn above_to(limit: f64, most: f64) -> (Bound<f64>, Bound<f64>) {
    (Bound::Excluded(limit), Bound::Included(most))
}

/// A limit as people write it: 0.5, 65536, 1e12.
struct Limit(f64);

impl fmt::Display for Limit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (plain, short) = (self.0.to_string(), format!("{:e}", self.0));
        f.write_str(if self.0 >= 1e6 && short.len() < plain.len() { &short } else { &plain })
    }
}

impl fmt::Display for Range {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        use Bound::{Excluded, Included, Unbounded};
        match (self.low.map(Limit), self.high.map(Limit)) {
            (Unbounded, Unbounded) => f.write_str("finite"),
            (Included(low), Unbounded) => write!(f, ">= {low}"),
            (Excluded(low), Unbounded) => write!(f, "> {low}"),
            (Unbounded, Included(high)) => write!(f, "<= {high}"),
            (Unbounded, Excluded(high)) => write!(f, "< {high}"),
            (Included(low), Included(high)) => write!(f, "in [{low}, {high}]"),
            (Included(low), Excluded(high)) => write!(f, "in [{low}, {high})"),
            (Excluded(low), Included(high)) => write!(f, "in ({low}, {high}]"),
            (Excluded(low), Excluded(high)) => write!(f, "in ({low}, {high})"),
        }
    }
}

/// A section of the plan: `key: type = default, within range;`, each after its doc comment. Every key may be
/// left out, and a key that does not exist is refused.
macro_rules! section {
    (
        $(#[doc = $about:literal])+
        pub struct $name:ident {$(
            $(#[doc = $text:literal])+
            $(#[serde($($serde:tt)+)])?
            pub $key:ident: $type:ty = $default:expr $(, within $range:expr)?;
        )+}
    ) => {
        $(#[doc = $about])+
        #[derive(Clone, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
        #[serde(deny_unknown_fields, default)]
        pub struct $name {$(
            $(#[doc = $text])+
            $(#[serde($($serde)+)])?
            pub $key: $type,
        )+}

        impl Default for $name {
            fn default() -> Self {
                Self { $($key: $default),+ }
            }
        }

        keys! { true, $name, concat!($($about, "\n"),+), $(
            $key: $type, concat!($($text, "\n"),+) $(, $range)?;
        )+ }
    };
}

/// A table whose keys have no defaults: all but options must be there.
macro_rules! table {
    (
        $(#[doc = $about:literal])+
        pub struct $name:ident {$(
            $(#[doc = $text:literal])+
            $(#[serde($($serde:tt)+)])?
            pub $key:ident: $type:ty $(, within $range:expr)?;
        )+}
    ) => {
        $(#[doc = $about])+
        #[derive(Clone, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
        #[serde(deny_unknown_fields)]
        pub struct $name {$(
            $(#[doc = $text])+
            $(#[serde($($serde)+)])?
            pub $key: $type,
        )+}

        keys! { false, $name, concat!($($about, "\n"),+), $(
            $key: $type, concat!($($text, "\n"),+) $(, $range)?;
        )+ }
    };
}

/// The keys of `section!` and `table!`.
macro_rules! keys {
    ($defaults:literal, $name:ident, $about:expr, $(
        $key:ident: $type:ty, $text:expr $(, $range:expr)?;
    )+) => {
        impl $crate::config::keys::Described for $name {
            fn kind() -> $crate::config::keys::Kind {
                use $crate::config::keys::{Described, Key, Kind, Section};
                let keys = vec![$(
                    Key {
                        name: stringify!($key),
                        text: $text,
                        kind: <$type as Described>::kind()$(.within($crate::config::keys::Range::of($range)))?,
                        optional: $defaults || <$type as Described>::OPTIONAL,
                    }
                ),+];
                Kind::Table(Section { text: $about, keys })
            }
        }
    };
}

/// A choice of words, each after its doc comment.
macro_rules! choice {
    (
        $(#[doc = $about:literal])+
        $(#[derive($more:path)])?
        pub enum $name:ident {$(
            $(#[doc = $text:literal])+
            $variant:ident = $word:literal,
        )+}
    ) => {
        $(#[doc = $about])+
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize)]
        $(#[derive($more)])?
        pub enum $name {$(
            $(#[doc = $text])+
            #[serde(rename = $word)]
            $variant,
        )+}

        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str(match self {
                    $(Self::$variant => $word),+
                })
            }
        }

        impl std::str::FromStr for $name {
            type Err = $crate::Error;

            fn from_str(text: &str) -> $crate::Result<Self> {
                match text {
                    $($word => Ok(Self::$variant),)+
                    _ => Err($crate::Error::config(format!("must be one of {}", [$($word),+].join(", ")))),
                }
            }
        }

        impl $crate::config::keys::Described for $name {
            fn kind() -> $crate::config::keys::Kind {
                use $crate::config::keys::{Kind, Word};
                Kind::Choice(&[$(Word { word: $word, text: concat!($($text, "\n"),+) }),+])
            }
        }
    };
}

pub(super) use {choice, keys, section, table};
