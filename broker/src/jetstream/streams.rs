//! The stream as it must be: made when it is missing, set right when somebody has edited it, made anew when that is refused.
//! What is in it can be lost: the store knows what has no outcome.

use std::time::Duration;

use async_nats::jetstream::ErrorCode;
use async_nats::jetstream::context::{CreateStreamError, CreateStreamErrorKind, GetStreamErrorKind};
use async_nats::jetstream::stream::{Config, DiscardPolicy, Info, RetentionPolicy, StorageType};

use super::server::{Server, unavailable};
use crate::Error;
use outlast_core::Reason;

impl Server {
    /// A stream as it is; `None` when there is none.
    pub(crate) async fn look_at(&self, config: &Config) -> Result<Option<Info>, Error> {
        let found = self.answer(async { Ok(self.js.get_stream(&config.name).await) }).await?;
        match found {
            Ok(stream) => Ok(Some(stream.cached_info().clone())),
            Err(error) => match error.kind() {
                GetStreamErrorKind::JetStream(error) if error.error_code() == ErrorCode::STREAM_NOT_FOUND => Ok(None),
                _ => Err(unavailable(error)),
            },
        }
    }

    /// Makes sure that a stream is there and is as it must be.
    pub(crate) async fn create_stream(&self, config: &Config) -> Result<(), Error> {
        let _alone = self.creating.lock().await;
        let create = async { Ok(self.js.get_or_create_stream(config.clone()).await) };
        let found = self.answer(create).await?.map_err(no_stream)?;
        check(config, &found.cached_info().config)
    }

    /// The stream of work.
    pub(crate) fn work_config(&self) -> Config {
        Config {
            name: self.subjects.work_stream(),
            subjects: vec![self.subjects.work()],
            retention: RetentionPolicy::WorkQueue,
            // An item has a subject of its own: while it is queued or held, a second copy is refused.
            max_messages_per_subject: 1,
            discard: DiscardPolicy::New,
            discard_new_per_subject: true,
            storage: if self.options.memory_storage { StorageType::Memory } else { StorageType::File },
            num_replicas: self.options.replicas,
            ..Config::default()
        }
    }

    /// Takes back what somebody has changed about a stream, if it keeps the stream from its work; says whether there was
    /// something.
    pub(crate) async fn set_right(&self, wanted: &Config, found: &Info) -> Result<bool, Error> {
        let Some(mended) = mended(wanted, &found.config) else { return Ok(false) };
        let name = &wanted.name;
        self.troubles.note(format!("somebody has edited the stream {name}: it was set right; leave it as it is"));
        let update = self.answer(async { Ok(self.js.update_stream(&mended).await) }).await?;
        match update {
            Ok(_) => {}
            // Some edits cannot be taken back, as that a stream is sealed.
            Err(error) => match error.kind() {
                CreateStreamErrorKind::JetStream(_) => self.replace_stream(wanted, found).await?,
                _ => return Err(unavailable(error)),
            },
        }
        Ok(true)
    }

    /// Deletes the stream that was `found`, with its consumers, and creates it anew.
    pub(crate) async fn replace_stream(&self, wanted: &Config, found: &Info) -> Result<(), Error> {
        // Another node may have done it since. If it does it between this look and the deletion, its new stream goes too:
        // that costs another round of handing out, which every node begins when it sees a new stream.
        if self.look_at(wanted).await?.is_some_and(|now| now.created != found.created) {
            return Ok(());
        }
        tracing::warn!(target: super::LOG, stream = wanted.name, "a stream is deleted and created anew");
        let delete = self.answer(async { Ok(self.js.delete_stream(&wanted.name).await) }).await?;
        if let Err(error) = delete {
            tracing::debug!(target: super::LOG, %error, "the stream was not deleted: it may be gone already");
        }
        self.create_stream(wanted).await
    }
}

/// The stream with what it must have; `None` when it has it. Copies, place, description and the like are the operator's.
fn mended(wanted: &Config, found: &Config) -> Option<Config> {
    let mended = Config {
        subjects: wanted.subjects.clone(),
        discard: wanted.discard,
        discard_new_per_subject: wanted.discard_new_per_subject,
        max_messages_per_subject: match wanted.max_messages_per_subject {
            ..=0 => not_less(0, found.max_messages_per_subject),
            exactly => exactly,
        },
        max_messages: not_less(wanted.max_messages, found.max_messages),
        max_bytes: not_less(wanted.max_bytes, found.max_bytes),
        max_message_size: if found.max_message_size > 0 { -1 } else { found.max_message_size },
        max_age: match (wanted.max_age, found.max_age) {
            (Duration::ZERO, _) | (_, Duration::ZERO) => Duration::ZERO,
            (wanted, found) => wanted.max(found),
        },
        no_ack: false,
        sealed: false,
        deny_purge: false,
        subject_transform: None,
        ..found.clone()
    };
    (mended != *found).then_some(mended)
}

/// A limit that is tighter than wanted is reset to the wanted one; a looser one stays. When there is no limit, the
/// server says -1.
fn not_less(wanted: i64, found: i64) -> i64 {
    match (wanted, found) {
        (_, ..=0) => found,
        (..=0, _) => -1,
        _ => wanted.max(found),
    }
}

/// Waiting does not help an account that may not have streams. Silence may end: a cluster's servers may still be connecting.
fn no_stream(error: CreateStreamError) -> Error {
    let turn_on = "turn JetStream on in the server, or give the account JetStream limits";
    match error.kind() {
        CreateStreamErrorKind::JetStream(answer) if is_off(&answer) => {
            Error::unusable(Reason::because(format!("{error}: {turn_on}"), error))
        }
        CreateStreamErrorKind::JetStreamUnavailable => {
            Error::unavailable(Reason::because(format!("{error}: {turn_on}"), error))
        }
        _ => unavailable(error),
    }
}

fn is_off(error: &async_nats::jetstream::Error) -> bool {
    [ErrorCode::JETSTREAM_NOT_ENABLED, ErrorCode::JETSTREAM_NOT_ENABLED_FOR_ACCOUNT].contains(&error.error_code())
}

/// Old servers take options that they do not know and leave them out.
fn check(asked: &Config, found: &Config) -> Result<(), Error> {
    let same = asked.subjects == found.subjects
        && asked.retention == found.retention
        && asked.discard == found.discard
        && asked.discard_new_per_subject == found.discard_new_per_subject
        && (asked.max_messages_per_subject == found.max_messages_per_subject || asked.max_messages_per_subject == 0);
    if same {
        return Ok(());
    }
    Err(Error::unusable(format!(
        "the stream {} is not as it must be: delete it, or use another namespace (asked for {asked:?}, found {found:?})",
        asked.name
    )))
}
