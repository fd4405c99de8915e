//! Messages to the owners of shards: nudges, which may get lost, and reports, which are answered.

use std::collections::HashMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock, Weak};
use std::time::Duration;

use async_nats::{Message, Request, Subscriber};
use futures::future::OptionFuture;
use futures::{FutureExt as _, StreamExt as _};
use outlast_core::{ShardId, decode, encode};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;

use super::restarts::{keep, note_panic};
use super::server::{Server, unavailable};
use super::wire::{Asked, ReplyBody, ReportBody, ShardBody};
use crate::owner::ask_owner;
use crate::{Error, Question, Report, ReportReply, ShardMessage, ShardNotice};

/// How long the answer to a report may take: a commit that waits for a slow store. The report is repeated after it.
const REPORT_TIMEOUT: Duration = Duration::from_secs(5);
/// How long the answer to questions may take: whoever asks asks again, or somebody else.
const ASK_TIMEOUT: Duration = Duration::from_secs(2);

/// A larger start snapshot is read from the store: a nudge must not hold up those behind it.
const SNAPSHOT_BYTES_MAX: usize = 64 << 10;
/// Longest wait for the answers of a shard that is given up; workers repeat their reports to its next owner.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(1);

/// How often it is tried whether messages arrive: a subscription that has died is made anew within two looks.
const LOOK_EVERY: Duration = Duration::from_secs(5);
/// How long a message that the server has delivered may lie before it is read: much longer than a busy executor takes.
const DELIVERED_WITHIN: Duration = Duration::from_millis(500);

type Receiver = mpsc::UnboundedSender<ShardMessage>;

/// Who receives what in this process, and the subscriptions behind it.
pub(crate) struct ShardMessages {
    server: Arc<Server>,
    shards_owned: RwLock<HashMap<ShardId, OwnedShard>>,
}

struct OwnedShard {
    owner: Receiver,
    subscription: Subscribed,
}

struct Subscribed {
    /// How many messages have come.
    heard: Arc<AtomicU64>,
    /// Dropped with it: the sign for the task to end.
    _open: oneshot::Sender<()>,
    task: JoinHandle<()>,
}

impl ShardMessages {
    pub(crate) fn new(server: Arc<Server>) -> Arc<Self> {
        let all = Arc::new(Self { server, shards_owned: RwLock::default() });
        let (troubles, kept) = (Arc::clone(&all.server.troubles), Arc::downgrade(&all));
        tokio::spawn(keep(troubles, "subscriptions to shard messages", move || look_after(Weak::clone(&kept))));
        all
    }

    /// Returns when messages of other processes arrive.
    pub(crate) async fn own(self: &Arc<Self>, shards: &[ShardId], owner: &Receiver) -> Result<(), Error> {
        for shard in shards {
            if let Some(open) = self.write().get_mut(shard) {
                open.owner = owner.clone();
                continue;
            }
            let subscription = self.subscribe(*shard).await?;
            self.write().insert(*shard, OwnedShard { owner: owner.clone(), subscription });
        }
        self.server.settled().await
    }

    async fn subscribe(self: &Arc<Self>, shard: ShardId) -> Result<Subscribed, Error> {
        let messages = self.server.client.subscribe(self.server.subjects.shard(shard)).await.map_err(unavailable)?;
        let (open, closed) = oneshot::channel();
        let heard = Arc::<AtomicU64>::default();
        let listening = Listening { all: Arc::downgrade(self), shard, heard: Arc::clone(&heard) };
        Ok(Subscribed { heard, _open: open, task: tokio::spawn(listening.run(messages, closed)) })
    }

    /// Writes to those shards of this process that got no message since `before`, and subscribes anew where none arrives: the
    /// server may have dropped a subscription, as when the user's rights were changed for a while.
    async fn try_subscriptions(self: &Arc<Self>, before: &mut HashMap<ShardId, u64>) -> Result<(), Error> {
        let now = self.heard();
        let is_quiet = |(shard, count): &(ShardId, u64)| before.get(shard) == Some(count);
        let quiet: Vec<(ShardId, u64)> = now.iter().map(|(&shard, &count)| (shard, count)).filter(is_quiet).collect();
        *before = now;
        for (shard, _) in &quiet {
            let subject = self.server.subjects.shard(*shard);
            self.server.client.publish(subject, Vec::new().into()).await.map_err(unavailable)?;
        }
        // By then the server has delivered them.
        self.server.settled().await?;
        tokio::time::sleep(DELIVERED_WITHIN).await;
        let now = self.heard();
        for (shard, _) in quiet.into_iter().filter(|(shard, count)| now.get(shard) == Some(count)) {
            self.server.troubles.note(
                "messages for shards do not arrive, and are subscribed to anew: see that the NATS user may subscribe to them, and \
                 how many subscriptions it may have"
                    .to_owned(),
            );
            let subscription = self.subscribe(shard).await?;
            // The shard may have been given up meanwhile.
            if let Some(open) = self.write().get_mut(&shard) {
                open.subscription = subscription;
            }
        }
        Ok(())
    }

    fn heard(&self) -> HashMap<ShardId, u64> {
        let shards_owned = self.shards_owned.read().unwrap_or_else(PoisonError::into_inner);
        shards_owned.iter().map(|(shard, open)| (*shard, open.subscription.heard.load(Ordering::Relaxed))).collect()
    }

    /// Returns when everybody who has written so far has an answer on its way, or will soon ask another owner.
    pub(crate) async fn disown(&self, shards: &[ShardId], owner: &Receiver) {
        let closed: Vec<JoinHandle<()>> = {
            let mut shards_owned = self.write();
            let is_theirs =
                |shard: &ShardId, open: &mut OwnedShard| shards.contains(shard) && open.owner.same_channel(owner);
            shards_owned.extract_if(is_theirs).map(|(_, open)| open.subscription.task).collect()
        };
        let answered = async {
            futures::future::join_all(closed).await;
            self.server.client.flush().await
        };
        match self.server.while_up(CLOSE_TIMEOUT, answered).await {
            Some(Ok(())) => {}
            Some(Err(_)) | None => tracing::debug!(target: super::LOG, "answers to reports may be lost"),
        }
    }

    /// Tells the owner in this process, or else whoever owns the shard elsewhere.
    pub(crate) fn notify(&self, shard: ShardId, notice: ShardNotice) {
        if let Some(owner) = self.owner(shard)
            && owner.send(ShardMessage::Notice(notice.clone())).is_ok()
        {
            return;
        }
        self.post(shard, || match notice {
            ShardNotice::Nudge(instance) => encode(&ShardBody::Nudge(instance)),
            ShardNotice::Deleted(instance) => encode(&ShardBody::Deleted(instance)),
            ShardNotice::Started(snapshot) => {
                let instance = snapshot.instance.clone();
                let body = encode(&ShardBody::Begin(snapshot));
                let fits = body.len() <= SNAPSHOT_BYTES_MAX.min(self.server.client.max_payload());
                if fits { body } else { encode(&ShardBody::Nudge(instance)) }
            }
        });
    }

    fn post(&self, shard: ShardId, body: impl FnOnce() -> Vec<u8>) {
        if self.server.is_up() {
            self.server.outbox.send(self.server.subjects.shard(shard), body());
        }
    }

    /// Asks the owner in this process first, then whoever else says that it is the owner.
    pub(crate) async fn report(&self, shard: ShardId, report: Report) -> Option<ReportReply> {
        if let Some(owner) = self.owner(shard) {
            let reply = report_here(owner, report.clone()).await;
            if reply != ReportReply::TryAgain {
                return Some(reply);
            }
        }
        let body = encode(&ShardBody::Report(Box::new(ReportBody::from(report))));
        self.request(shard, body, REPORT_TIMEOUT).await.first().copied()
    }

    /// Like a report; answers come in the order of the questions.
    pub(crate) async fn ask(&self, shard: ShardId, mut questions: Vec<Question>) -> Vec<ReportReply> {
        let count = questions.len();
        if let Some(owner) = self.owner(shard) {
            let asked = ask_owner(owner, |answer| ShardMessage::Ask(questions.clone(), answer));
            if let Ok(Some(replies)) = tokio::time::timeout(ASK_TIMEOUT, asked).await {
                return replies;
            }
        }
        let mut replies = Vec::with_capacity(count);
        // An owner of an older version answers the first question of each message.
        while !questions.is_empty() {
            let Some(body) = self.body_of(&questions) else { break };
            let answers = self.request(shard, body, ASK_TIMEOUT).await;
            if answers.is_empty() {
                return Vec::new();
            }
            questions.drain(..answers.len().min(questions.len()));
            replies.extend(answers);
        }
        replies.truncate(count);
        replies
    }

    /// As many of the questions as the server takes in one message.
    fn body_of(&self, questions: &[Question]) -> Option<Vec<u8>> {
        let mut count = questions.len();
        loop {
            let body = encode(&ShardBody::Report(Box::new(ReportBody::asking(&questions[..count])?)));
            if body.len() <= self.server.client.max_payload() || count == 1 {
                return Some(body);
            }
            count = count.div_ceil(2);
        }
    }

    /// Empty without an answer.
    async fn request(&self, shard: ShardId, body: Vec<u8>, limit: Duration) -> Vec<ReportReply> {
        let request = Request::new().payload(body.into()).timeout(Some(limit));
        let answer = self.server.client.send_request(self.server.subjects.shard(shard), request);
        // The bound of the request begins when it is sent, which it may not be while the server is away.
        match tokio::time::timeout(limit, answer).await {
            Ok(Ok(message)) => decode::<ReplyBody>(&message.payload).map_or_else(|_| Vec::new(), ReplyBody::replies),
            Ok(Err(_)) | Err(_) => Vec::new(),
        }
    }

    fn owner(&self, shard: ShardId) -> Option<Receiver> {
        let shards_owned = self.shards_owned.read().unwrap_or_else(PoisonError::into_inner);
        shards_owned.get(&shard).map(|open| open.owner.clone())
    }

    fn write(&self) -> std::sync::RwLockWriteGuard<'_, HashMap<ShardId, OwnedShard>> {
        self.shards_owned.write().unwrap_or_else(PoisonError::into_inner)
    }

    fn take(self: &Arc<Self>, shard: ShardId, message: Message) {
        // Only to see whether it arrives.
        if message.payload.is_empty() {
            return;
        }
        let owner = self.owner(shard);
        match decode(&message.payload) {
            Ok(ShardBody::Nudge(instance)) => {
                let Some(owner) = owner else { return };
                // An owner that is gone is replaced, and its successor looks at every inbox.
                let _gone = owner.send(ShardMessage::Notice(ShardNotice::Nudge(instance)));
            }
            Ok(ShardBody::Begin(snapshot)) => {
                let Some(owner) = owner else { return };
                let _gone = owner.send(ShardMessage::Notice(ShardNotice::Started(snapshot)));
            }
            Ok(ShardBody::Deleted(instance)) => {
                let Some(owner) = owner else { return };
                let _gone = owner.send(ShardMessage::Notice(ShardNotice::Deleted(instance)));
            }
            Ok(ShardBody::Report(body)) => {
                let Some(answer_to) = message.reply else { return };
                // Handed over here, so that messages stay in order. The worker gets an answer even when the shard has gone to another owner.
                let answer = match body.open() {
                    Asked::Report(report) => {
                        let ask = |owner| ask_owner(owner, |answer| ShardMessage::Report(Box::new(report), answer));
                        let reply = OptionFuture::from(owner.map(ask));
                        async move { vec![reply.await.flatten().unwrap_or(ReportReply::TryAgain)] }.boxed()
                    }
                    Asked::Questions(questions) => {
                        let count = questions.len();
                        let ask = |owner| ask_owner(owner, |answer| ShardMessage::Ask(questions, answer));
                        let replies = OptionFuture::from(owner.map(ask));
                        // The owner of a moment ago no longer owns it; somebody else may.
                        let none = move || vec![ReportReply::TryAgain; count];
                        async move { replies.await.flatten().unwrap_or_else(none) }.boxed()
                    }
                };
                let client = self.server.client.clone();
                tokio::spawn(async move {
                    let reply = ReplyBody::to(answer.await);
                    // Without an answer the worker asks again.
                    let _lost = client.publish(answer_to, encode(&reply).into()).await;
                });
            }
            Err(error) => tracing::debug!(target: super::LOG, %error, "a shard message is left unread"),
        }
    }
}

/// Looks after the subscriptions until there are none any more.
async fn look_after(all: Weak<ShardMessages>) {
    let mut before = HashMap::new();
    loop {
        tokio::time::sleep(LOOK_EVERY).await;
        let Some(all) = all.upgrade() else { return };
        if all.server.is_up()
            && let Err(error) = all.try_subscriptions(&mut before).await
        {
            tracing::debug!(target: super::LOG, %error, "subscriptions to shard messages cannot be tried");
        }
    }
}

/// The subscription of a shard.
struct Listening {
    all: Weak<ShardMessages>,
    shard: ShardId,
    heard: Arc<AtomicU64>,
}

impl Listening {
    /// Passes messages on; once closed, those that have come already.
    async fn run(self, mut messages: Subscriber, mut closed: oneshot::Receiver<()>) {
        let Self { all, shard, heard } = self;
        let mut open = true;
        let mut until = tokio::time::Instant::now();
        loop {
            let message = tokio::select! {
                message = messages.next() => message,
                // Without the server the subscription does not end, and would keep the connection.
                () = tokio::time::sleep_until(until), if !open => return,
                _ = &mut closed, if open => {
                    open = false;
                    until = tokio::time::Instant::now() + CLOSE_TIMEOUT;
                    if messages.drain().await.is_err() {
                        return;
                    }
                    continue;
                }
            };
            let (Some(message), Some(all)) = (message, all.upgrade()) else { return };
            heard.fetch_add(1, Ordering::Relaxed);
            // A message that cannot be handled holds up none of the others: a nudge is made up for, a report is repeated.
            if let Err(panic) = catch_unwind(AssertUnwindSafe(|| all.take(shard, message))) {
                note_panic(&all.server.troubles, "shard messages", panic);
            }
        }
    }
}

/// Asks the owner in this process; its answer may take `REPORT_TIMEOUT`.
async fn report_here(owner: Receiver, report: Report) -> ReportReply {
    let answer = ask_owner(owner, |answer| ShardMessage::Report(Box::new(report), answer));
    tokio::time::timeout(REPORT_TIMEOUT, answer).await.ok().flatten().unwrap_or(ReportReply::TryAgain)
}
