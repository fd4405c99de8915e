//! How typed calls write and read values.
//!
//! A value whose JSON is a text (a `String`, a newtype around one, a unit variant, `Some` text) is written as that text,
//! everything else as JSON. Reading tries JSON first, then takes the text as it is: so plain and typed calls can read each other.
//! A text that is itself a JSON string (`"x"`, with its quotes), and `Some("null")`, come back as what that JSON says.

use std::fmt;

use serde::Serialize;
use serde::de::DeserializeOwned;

/// A value as inputs, results, events and values of the KV carry it.
pub fn write_typed<T: Serialize + ?Sized>(value: &T) -> Result<String, serde_json::Error> {
    let json = serde_json::to_string(value)?;
    if json.starts_with('"') { serde_json::from_str(&json) } else { Ok(json) }
}

/// Reads what [`write_typed`], a plain call or a program of before wrote.
pub fn read_typed<T: DeserializeOwned>(text: &str) -> Result<T, serde_json::Error> {
    serde_json::from_str(text)
        // If neither fits, the JSON error is reported, because JSON is what typed programs exchange.
        .or_else(|no_json| serde_json::from_value(serde_json::Value::from(text)).map_err(|_| no_json))
}

/// What a typed call of orchestration code reads or writes, for the error when it does not fit.
#[derive(Clone, Debug)]
pub(crate) enum TypedValue {
    ActivityInput { activity: String },
    ActivityResult { activity: String },
    OrchestrationInput { orchestration: String },
    OrchestrationResult { orchestration: String },
    Event { name: String },
    QueueMessage { queue: String },
    KvValue { key: String },
    KvValueOf { instance: String, key: String },
}

impl TypedValue {
    /// What errors called it before [`Rules`](crate::Rules) 2.
    pub(crate) fn former_name(&self) -> &'static str {
        match self {
            Self::OrchestrationInput { .. } => "orchestration input: result",
            Self::Event { .. } | Self::QueueMessage { .. } => "event data",
            Self::ActivityInput { .. }
            | Self::ActivityResult { .. }
            | Self::OrchestrationResult { .. }
            | Self::KvValue { .. }
            | Self::KvValueOf { .. } => "result",
        }
    }
}

impl fmt::Display for TypedValue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::ActivityInput { activity } => write!(f, "input of activity {activity:?}"),
            Self::ActivityResult { activity } => write!(f, "result of activity {activity:?}"),
            Self::OrchestrationInput { orchestration } => write!(f, "input of orchestration {orchestration:?}"),
            Self::OrchestrationResult { orchestration } => write!(f, "result of orchestration {orchestration:?}"),
            Self::Event { name } => write!(f, "data of event {name:?}"),
            Self::QueueMessage { queue } => write!(f, "message of queue {queue:?}"),
            Self::KvValue { key } => write!(f, "value of key {key:?}"),
            Self::KvValueOf { instance, key } => write!(f, "value of key {key:?} of instance {instance:?}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fmt::Debug;

    use serde::{Deserialize, Serialize};

    use super::{read_typed, write_typed};

    #[derive(Clone, Debug, Serialize, Deserialize, PartialEq)]
    struct Name(String);

    #[derive(Clone, Debug, Serialize, Deserialize, PartialEq)]
    enum Color {
        Red,
        Mixed { share: u8 },
    }

    #[track_caller]
    fn round<T: Serialize + serde::de::DeserializeOwned + PartialEq + Debug>(value: T, written: &str) {
        assert_eq!(write_typed(&value).unwrap(), written);
        assert_eq!(read_typed::<T>(written).unwrap(), value);
    }

    #[test]
    fn a_text_is_written_as_it_is_and_comes_back() {
        for text in
            ["Bob", "", " ", "5", "null", "true", "{\"a\":1}", "[\"x\"]", "\"", "\"open", "é\n\t\u{1}\\", "1e400"]
        {
            round(text.to_owned(), text);
            round(Name(text.to_owned()), text);
        }
        for text in ["Bob", "", "5", "{}"] {
            round(Some(text.to_owned()), text);
        }
        round(None::<String>, "null");
        round(Color::Red, "Red");
    }

    #[test]
    fn everything_else_is_json() {
        round(5_u32, "5");
        round((), "null");
        round(vec!["a".to_owned()], "[\"a\"]");
        round(Color::Mixed { share: 3 }, "{\"Mixed\":{\"share\":3}}");
        round(u128::MAX, &u128::MAX.to_string());
    }

    #[test]
    fn json_texts_of_before_are_read() {
        assert_eq!(read_typed::<String>("\"Bob\"").unwrap(), "Bob");
        assert_eq!(read_typed::<Option<String>>("\"Bob\"").unwrap().as_deref(), Some("Bob"));
        assert_eq!(read_typed::<Color>("\"Red\"").unwrap(), Color::Red);
    }

    #[test]
    fn what_does_not_fit_is_told_by_its_json() {
        let error = read_typed::<Color>("{\"Mixed\":{}}").unwrap_err();
        assert!(error.to_string().contains("missing field `share`"), "{error}");
        assert!(read_typed::<u32>("Bob").is_err());
    }
}
