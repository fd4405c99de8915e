//! What is known of a delivered message: the server says it in the subject for its acknowledgement.

use async_nats::Message;

/// The header of what was handed out before.
pub(crate) const AGAIN: &str = "Outlast-Again";

/// What the server says of a message in the subject for its acknowledgement.
pub(crate) struct AckSubject<'a> {
    pub(crate) consumer: &'a str,
    pub(crate) delivered: u64,
    /// Nanoseconds since 1970, by the server's clock.
    pub(crate) published: u64,
    /// What the consumer still had for us when it was sent.
    pub(crate) pending: u64,
}

impl<'a> AckSubject<'a> {
    /// `$JS.ACK.stream.consumer.delivered.sequence.consumer sequence.time.pending`, newer with domain and account first.
    pub(crate) fn parse(subject: &'a str) -> Option<Self> {
        let parts: Vec<&str> = subject.strip_prefix("$JS.ACK.")?.split('.').collect();
        let parts = if parts.len() >= 9 { parts.get(2..)? } else { &parts };
        let &[_, consumer, delivered, _, _, published, pending, ..] = parts else { return None };
        let number = |text: &str| text.parse().ok();
        let (delivered, published, pending) = (number(delivered)?, number(published)?, number(pending)?);
        Some(Self { consumer, delivered, published, pending })
    }
}

/// Whether this item may have been run: its owner has handed it out before, or the server has delivered it before.
pub(crate) fn was_handed_out(message: &Message) -> bool {
    let again = message.headers.as_ref().is_some_and(|headers| headers.get(AGAIN).is_some());
    again || message.reply.as_deref().and_then(AckSubject::parse).is_some_and(|origin| origin.delivered > 1)
}
