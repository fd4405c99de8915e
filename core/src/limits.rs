//! Every limit of the system with its name and default.

use thiserror::Error;

use crate::RefusedOption;

/// Bounds on what one instance, one call and one node may hold. Meeting one gives a typed error or back-pressure.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of one input, result, event or queue message (default 8 MiB).
    pub payload_bytes_max: usize,
    /// Bytes of an instance id, name, queue name, tag, session id or KV key (default 512).
    pub name_bytes_max: usize,
    /// Keys in the KV of one instance (default 100).
    pub kv_keys_max: usize,
    /// Bytes of one KV value (default 16 KiB).
    pub kv_value_bytes_max: usize,
    /// Bytes of a custom status (default 256 KiB).
    pub custom_status_bytes_max: usize,
    /// Bytes of the text of an error or panic, of an activity or an orchestration (default 1 MiB); what is longer is cut, and
    /// says so.
    pub error_bytes_max: usize,
    /// Bytes of what an activity notes with a heartbeat (default 1 MiB); what is longer is cut, and says so.
    pub heartbeat_bytes_max: usize,
    /// Messages waiting in one queue of one instance (default 100,000).
    pub queue_messages_max: usize,
    /// Commands of one turn (default 20,000); more stop the turn as a runaway loop.
    pub commands_per_turn_max: usize,
    /// Events of one execution (default 200,000).
    pub history_events_max: u64,
    /// Bytes of one execution's history (default 256 MiB).
    pub history_bytes_max: u64,
    /// Warm instances of one node (default 8,000; each takes about 25 KiB while it idles).
    pub warm_instances_max: usize,
    /// Messages that one turn applies (default 1,000); the rest follow in the next.
    pub messages_per_turn_max: usize,
    /// Turns of one node that are decided and not committed yet (default 128): the others wait with what comes for them, so
    /// that what they decide is fresh.
    pub turns_in_flight_max: usize,
    /// Turns in one group commit (default 512).
    pub commit_group_max: usize,
    /// Activities of one tag that a node has given to the broker and that have not ended (default 65,536); the rest waits in
    /// the store, and follows.
    pub dispatch_window: usize,
    /// Finished results of one worker that wait for their commit (default 4,096).
    pub reports_in_flight_max: usize,
}

/// Bytes that one trip to a store reads; each instance that shares the trip has an equal part of it, and a larger one is read by
/// itself, in parts.
pub const LOAD_BYTES_MAX: usize = 64 << 20;
/// Bytes of messages after which a turn takes no more of them; the rest follow in the next.
pub const TURN_MESSAGE_BYTES_MAX: usize = 16 << 20;
/// Bytes of the reason of a cancel as it is told to each activity and child that was open. The reason itself is a payload, and with
/// thousands open its copies would be more than a commit can carry.
pub(crate) const REASON_COPY_BYTES_MAX: usize = 4 << 10;
/// Default of [`Limits::name_bytes_max`].
pub const NAME_BYTES_MAX: usize = 512;
/// Default of [`Limits::queue_messages_max`].
pub const QUEUE_MESSAGES_MAX: usize = 100_000;
/// Default of [`Limits::custom_status_bytes_max`].
pub const MAX_CUSTOM_STATUS_BYTES: usize = 256 << 10;
/// Default of [`Limits::kv_keys_max`].
pub const MAX_KV_KEYS: usize = 100;
/// Default of [`Limits::kv_value_bytes_max`].
pub const MAX_KV_VALUE_BYTES: usize = 16 << 10;

impl Default for Limits {
    fn default() -> Self {
        Self {
            payload_bytes_max: 8 << 20,
            name_bytes_max: NAME_BYTES_MAX,
            kv_keys_max: MAX_KV_KEYS,
            kv_value_bytes_max: MAX_KV_VALUE_BYTES,
            custom_status_bytes_max: MAX_CUSTOM_STATUS_BYTES,
            error_bytes_max: 1 << 20,
            heartbeat_bytes_max: 1 << 20,
            queue_messages_max: QUEUE_MESSAGES_MAX,
            commands_per_turn_max: 20_000,
            history_events_max: 200_000,
            history_bytes_max: 256 << 20,
            warm_instances_max: 8_000,
            messages_per_turn_max: 1_000,
            turns_in_flight_max: 128,
            commit_group_max: 512,
            dispatch_window: 65_536,
            reports_in_flight_max: 4_096,
        }
    }
}

/// A value that is larger than its limit, or not allowed at all.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum LimitExceeded {
    /// A payload over `payload_bytes_max`.
    #[error(
        "{what} has {bytes} bytes, the limit is {max} (payload_bytes_max): store it elsewhere and pass a reference"
    )]
    Payload {
        /// What was too large.
        what: &'static str,
        /// Its size in bytes.
        bytes: usize,
        /// The limit in bytes.
        max: usize,
    },
    /// A KV value or custom status over its own limit.
    #[error("{what} has {bytes} bytes, the limit is {max} ({limit}): make it smaller, or keep the data elsewhere")]
    Text {
        /// What was too large.
        what: &'static str,
        /// Its size in bytes.
        bytes: usize,
        /// The limit in bytes.
        max: usize,
        /// The limit's name.
        limit: &'static str,
    },
    /// A name that is empty, too long, or has control characters.
    #[error("{what} must have 1 to {max} bytes and no control characters, got {got:?}: choose another")]
    Name {
        /// Which name.
        what: &'static str,
        /// What was given, cut to 80 characters.
        got: String,
        /// The limit in bytes.
        max: usize,
    },
    /// An id that begins with or contains a reserved part.
    #[error(
        "instance id {0:?} contains \"::sub::\" or begins with \"sub::\", which is reserved for child instances: choose another id"
    )]
    ReservedId(String),
    /// The id that a child would get is over `name_bytes_max`.
    #[error(
        "the id of the child would have {bytes} bytes, the limit is {max} (name_bytes_max): choose a shorter one with schedule_sub_orchestration_with_id, or shorter ids above it"
    )]
    ChildId {
        /// Its size in bytes.
        bytes: usize,
        /// The limit in bytes.
        max: usize,
    },
}

pub(crate) fn payload_within(what: &'static str, text: &str, max: usize) -> Result<(), LimitExceeded> {
    if text.len() > max {
        return Err(LimitExceeded::Payload { what, bytes: text.len(), max });
    }
    Ok(())
}

pub(crate) fn name_within(what: &'static str, name: &str, max: usize) -> Result<(), LimitExceeded> {
    if name.is_empty() || name.len() > max || name.chars().any(char::is_control) {
        return Err(LimitExceeded::Name { what, got: name.chars().take(80).collect(), max });
    }
    Ok(())
}

impl Limits {
    /// Refuses limits by which nothing could be done at all. At 0, the others leave out a part: no KV, no custom status.
    pub fn check(&self) -> Result<(), RefusedOption> {
        // Named one by one, so that a new limit is not forgotten here.
        let Self {
            payload_bytes_max: _,
            name_bytes_max,
            kv_keys_max: _,
            kv_value_bytes_max: _,
            custom_status_bytes_max: _,
            error_bytes_max: _,
            heartbeat_bytes_max: _,
            queue_messages_max: _,
            commands_per_turn_max,
            history_events_max,
            history_bytes_max,
            warm_instances_max,
            messages_per_turn_max,
            turns_in_flight_max,
            commit_group_max,
            dispatch_window,
            reports_in_flight_max,
        } = self;
        RefusedOption::if_zero("Limits::history_events_max", history_events_max)?;
        RefusedOption::if_zero("Limits::history_bytes_max", history_bytes_max)?;
        for (option, value) in [
            ("Limits::name_bytes_max", name_bytes_max),
            ("Limits::commands_per_turn_max", commands_per_turn_max),
            ("Limits::warm_instances_max", warm_instances_max),
            ("Limits::messages_per_turn_max", messages_per_turn_max),
            ("Limits::turns_in_flight_max", turns_in_flight_max),
            ("Limits::commit_group_max", commit_group_max),
            ("Limits::dispatch_window", dispatch_window),
            ("Limits::reports_in_flight_max", reports_in_flight_max),
        ] {
            RefusedOption::if_zero(option, value)?;
        }
        Ok(())
    }

    /// The text of an error, cut to its limit.
    pub fn cut_error(&self, text: String) -> String {
        cut(text, self.error_bytes_max, "error_bytes_max")
    }

    /// What an activity notes with a heartbeat, cut to its limit.
    pub fn cut_heartbeat(&self, text: String) -> String {
        cut(text, self.heartbeat_bytes_max, "heartbeat_bytes_max")
    }

    /// Checks the size of a payload.
    pub fn check_payload(&self, what: &'static str, text: &str) -> Result<(), LimitExceeded> {
        payload_within(what, text, self.payload_bytes_max)
    }

    /// Checks a name (of an orchestration, activity, queue, event, tag, session or key).
    pub fn check_name(&self, what: &'static str, name: &str) -> Result<(), LimitExceeded> {
        name_within(what, name, self.name_bytes_max)
    }

    /// Checks a key of the KV: like a name, but it may be empty.
    pub fn check_kv_key(&self, key: &str) -> Result<(), LimitExceeded> {
        if key.is_empty() { Ok(()) } else { self.check_name("KV key", key) }
    }

    /// Checks an instance id that a client chose.
    pub fn check_instance(&self, id: &str) -> Result<(), LimitExceeded> {
        self.check_name("instance id", id)?;
        if id.starts_with("sub::") || id.contains("::sub::") {
            return Err(LimitExceeded::ReservedId(id.to_owned()));
        }
        Ok(())
    }
}

/// The reason of a cancel, as told to activities and children. Keeps the beginning and notes at the end what is missing;
/// if the limit has no room for both, only the note stays.
pub(crate) fn cut_reason(reason: &str) -> String {
    cut(reason.to_owned(), REASON_COPY_BYTES_MAX, "of each copy of a reason")
}

fn cut(mut text: String, max: usize, limit: &str) -> String {
    if text.len() <= max {
        return text;
    }
    let note = format!(" [cut: {} bytes, the limit is {max} ({limit})]", text.len());
    text.truncate(text.floor_char_boundary(max.saturating_sub(note.len())));
    text + &note
}

#[cfg(test)]
mod tests {
    use super::Limits;

    #[test]
    fn long_errors_are_cut_between_characters_and_say_so() {
        let limits = Limits { error_bytes_max: 100, ..Limits::default() };
        assert_eq!(limits.cut_error("x".repeat(100)).len(), 100);
        for head in ["", "a", "ab", "abc"] {
            let cut = limits.cut_error(format!("{head}{}", "\u{1f980}".repeat(1_000)));
            assert!(cut.len() <= 100 && cut.len() > 96 - 4, "{}", cut.len());
            assert!(cut.starts_with(head) && cut.ends_with("the limit is 100 (error_bytes_max)]"), "{cut}");
        }
    }
}
