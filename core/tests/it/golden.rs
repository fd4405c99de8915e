//! The stored form of every event can be read for ever.

use outlast_core::{EventKind, decode, encode};

/// One line per variant: the JSON of an event, and the bytes that stored it in version 1.
const GOLDEN: &str = include_str!("golden/events.txt");

fn lines() -> Vec<(EventKind, Vec<u8>)> {
    let read = |line: &str| {
        let (json, hex) = line.split_once('\t').expect("two columns");
        let bytes = (0..hex.len()).step_by(2).map(|at| u8::from_str_radix(&hex[at..at + 2], 16).unwrap());
        (serde_json::from_str(json).unwrap(), bytes.collect())
    };
    GOLDEN.lines().map(read).collect()
}

#[test]
fn every_variant_that_was_ever_stored_is_still_read() {
    for (kind, bytes) in lines() {
        let read: EventKind = decode(&bytes).unwrap();
        assert_eq!(read, kind);
    }
}

#[test]
fn every_variant_is_still_written_in_the_same_form() {
    for (kind, bytes) in lines() {
        assert_eq!(encode(&kind), bytes, "{kind:?}");
    }
    assert_eq!(lines().len(), 30, "a new variant needs a golden line");
}

/// The start of a fork on a node with other limits, and the bytes that stored it.
const START_WITH_RULES: &str = include_str!("golden/start_with_rules.txt");

#[test]
fn a_start_with_rules_limits_and_forks_is_read_and_written_in_the_same_form() {
    let (json, hex) = START_WITH_RULES.trim_end().split_once('\t').expect("two columns");
    let kind: EventKind = serde_json::from_str(json).unwrap();
    let EventKind::OrchestrationStarted { rules, limits, forks, .. } = &kind else { panic!("a start") };
    assert_eq!((serde_json::to_value(rules).unwrap(), forks.len()), (1.into(), 1));
    let limits = limits.expect("they are recorded");
    assert_eq!((limits.payload_bytes_max, limits.name_bytes_max, limits.kv_keys_max), (1_000, 512, 100));
    let written: String = encode(&kind).iter().map(|byte| format!("{byte:02x}")).collect();
    assert_eq!(written, hex);
    let bytes: Vec<u8> =
        (0..hex.len()).step_by(2).map(|at| u8::from_str_radix(&hex[at..at + 2], 16).unwrap()).collect();
    assert_eq!(decode::<EventKind>(&bytes).unwrap(), kind);
}

#[test]
fn damaged_bytes_are_an_error_and_never_a_panic() {
    for (_, bytes) in lines() {
        for cut in 0..bytes.len() {
            let _error_or_shorter_value = decode::<EventKind>(&bytes[..cut]);
        }
    }
    assert!(decode::<EventKind>(&[]).is_err());
    assert!(decode::<EventKind>(&[9, 1, 2]).unwrap_err().to_string().contains("upgrade"));
}
