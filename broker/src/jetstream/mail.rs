//! Mail for the owners of shards: nudges, which may get lost, and reports, which are answered.

use std::collections::HashMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock, Weak};
use std::time::Duration;

use async_nats::{Message, Request, Subscriber};
use futures::{FutureExt as _, StreamExt as _};
use outlast_core::{InstanceId, ShardId, StartSnapshot, decode, encode};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;

use super::hub::{Hub, unavailable};
use super::upkeep::{keep, note_panic};
use super::wire::{Letter, Mail, ReplyBody, ReportBody};
use crate::{Error, Question, Report, ReportReply, ShardMessage};

/// How long the answer to a report may take.
const REPORT_TIMEOUT: Duration = Duration::from_secs(5);
/// How long the answer to questions may take: whoever asks asks again, or somebody else.
const ASK_TIMEOUT: Duration = Duration::from_secs(2);

/// A larger beginning is read from the store.
const BEGINNING_BYTES_MAX: usize = 64 << 10;
/// Longest wait for the answers of a shard that is given up.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(1);

/// How often is looked whether mail arrives.
const LOOK_EVERY: Duration = Duration::from_secs(5);
/// How long a letter that the server has delivered may lie before it is read.
const DELIVERED_WITHIN: Duration = Duration::from_millis(500);

type Receiver = mpsc::UnboundedSender<ShardMessage>;

/// Who receives what in this process, and the subscriptions behind it.
pub(crate) struct MailRoom {
    hub: Arc<Hub>,
    boxes: RwLock<HashMap<ShardId, MailBox>>,
}

struct MailBox {
    owner: Receiver,
    subscription: Subscribed,
}

struct Subscribed {
    /// How many letters have come.
    heard: Arc<AtomicU64>,
    /// Dropped with it: the sign for the task to end.
    _open: oneshot::Sender<()>,
    task: JoinHandle<()>,
}

impl MailRoom {
    pub(crate) fn new(hub: Arc<Hub>) -> Arc<Self> {
        let room = Arc::new(Self { hub, boxes: RwLock::default() });
        let (troubles, kept) = (Arc::clone(&room.hub.troubles), Arc::downgrade(&room));
        tokio::spawn(keep(troubles, "boxes for mail", move || look_after(Weak::clone(&kept))));
        room
    }

    /// Returns when mail of other processes arrives.
    pub(crate) async fn own(self: &Arc<Self>, shards: &[ShardId], owner: &Receiver) -> Result<(), Error> {
        for shard in shards {
            if let Some(open) = self.write().get_mut(shard) {
                open.owner = owner.clone();
                continue;
            }
            let subscription = self.subscribe(*shard).await?;
            self.write().insert(*shard, MailBox { owner: owner.clone(), subscription });
        }
        self.hub.settled().await
    }

    async fn subscribe(self: &Arc<Self>, shard: ShardId) -> Result<Subscribed, Error> {
        let letters = self.hub.client.subscribe(self.hub.subjects.shard(shard)).await.map_err(unavailable)?;
        let (open, closed) = oneshot::channel();
        let heard = Arc::<AtomicU64>::default();
        let listening = Listening { room: Arc::downgrade(self), shard, heard: Arc::clone(&heard) };
        Ok(Subscribed { heard, _open: open, task: tokio::spawn(listening.run(letters, closed)) })
    }

    /// Writes to those shards of this process that got no mail since `before`, and subscribes anew where it does not arrive: the
    /// server may have dropped a subscription, as when the user's rights were changed for a while.
    async fn try_boxes(self: &Arc<Self>, before: &mut HashMap<ShardId, u64>) -> Result<(), Error> {
        let now = self.heard();
        let is_quiet = |(shard, count): &(ShardId, u64)| before.get(shard) == Some(count);
        let quiet: Vec<(ShardId, u64)> = now.iter().map(|(&shard, &count)| (shard, count)).filter(is_quiet).collect();
        *before = now;
        for (shard, _) in &quiet {
            let subject = self.hub.subjects.shard(*shard);
            self.hub.client.publish(subject, Vec::new().into()).await.map_err(unavailable)?;
        }
        // By then the server has delivered them.
        self.hub.settled().await?;
        tokio::time::sleep(DELIVERED_WITHIN).await;
        let now = self.heard();
        for (shard, _) in quiet.into_iter().filter(|(shard, count)| now.get(shard) == Some(count)) {
            self.hub.troubles.note(
                "mail for shards does not arrive, and is subscribed to anew: see that the NATS user may subscribe to it, and \
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
        let boxes = self.boxes.read().unwrap_or_else(PoisonError::into_inner);
        boxes.iter().map(|(shard, open)| (*shard, open.subscription.heard.load(Ordering::Relaxed))).collect()
    }

    /// Returns when whoever wrote until now has an answer on its way, or soon asks another.
    pub(crate) async fn disown(&self, shards: &[ShardId], owner: &Receiver) {
        let closed: Vec<JoinHandle<()>> = {
            let mut boxes = self.write();
            let is_theirs =
                |shard: &ShardId, open: &mut MailBox| shards.contains(shard) && open.owner.same_channel(owner);
            boxes.extract_if(is_theirs).map(|(_, open)| open.subscription.task).collect()
        };
        let answered = async {
            futures::future::join_all(closed).await;
            self.hub.client.flush().await
        };
        match self.hub.while_up(CLOSE_TIMEOUT, answered).await {
            Some(Ok(())) => {}
            Some(Err(_)) | None => tracing::debug!(target: super::LOG, "answers to reports may be lost"),
        }
    }

    pub(crate) fn nudge(&self, shard: ShardId, instance: InstanceId) {
        if let Some(owner) = self.owner(shard)
            && owner.send(ShardMessage::Nudge(instance.clone())).is_ok()
        {
            return;
        }
        self.post(shard, || encode(&Mail::Nudge(instance)));
    }

    pub(crate) fn deleted(&self, shard: ShardId, instance: InstanceId) {
        if let Some(owner) = self.owner(shard)
            && owner.send(ShardMessage::Deleted(instance.clone())).is_ok()
        {
            return;
        }
        self.post(shard, || encode(&Mail::Deleted(instance)));
    }

    pub(crate) fn begin(&self, shard: ShardId, beginning: StartSnapshot) {
        let beginning = Box::new(beginning);
        if let Some(owner) = self.owner(shard)
            && owner.send(ShardMessage::Begin(beginning.clone())).is_ok()
        {
            return;
        }
        self.post(shard, || {
            let body = encode(&Mail::Begin(beginning.clone()));
            if body.len() <= BEGINNING_BYTES_MAX.min(self.hub.client.max_payload()) {
                body
            } else {
                encode(&Mail::Nudge(beginning.instance))
            }
        });
    }

    fn post(&self, shard: ShardId, body: impl FnOnce() -> Vec<u8>) {
        if self.hub.is_up() {
            self.hub.outbox.send(self.hub.subjects.shard(shard), body());
        }
    }

    /// Asks the owner in this process first, then whoever else says that it is the owner.
    pub(crate) async fn report(&self, shard: ShardId, report: Report) -> ReportReply {
        if let Some(owner) = self.owner(shard) {
            let reply = ask(&owner, report.clone()).await;
            if reply != ReportReply::TryAgain {
                return reply;
            }
        }
        let body = encode(&Mail::Report(Box::new(ReportBody::from(report))));
        let replies = self.request(shard, body, REPORT_TIMEOUT).await;
        replies.first().copied().unwrap_or(ReportReply::TryAgain)
    }

    /// Like a report; answers come in the order of the questions.
    pub(crate) async fn ask(&self, shard: ShardId, mut questions: Vec<Question>) -> Vec<ReportReply> {
        let count = questions.len();
        if let Some(owner) = self.owner(shard) {
            let asked = pass_on(&owner, questions.clone());
            if let Ok(Ok(replies)) = tokio::time::timeout(ASK_TIMEOUT, asked).await {
                return replies;
            }
        }
        let mut replies = Vec::with_capacity(count);
        // An owner of an older version answers the first question of each letter.
        while !questions.is_empty() {
            let Some(body) = self.letter_of(&questions) else { break };
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
    fn letter_of(&self, questions: &[Question]) -> Option<Vec<u8>> {
        let mut count = questions.len();
        loop {
            let body = encode(&Mail::Report(Box::new(ReportBody::asking(&questions[..count])?)));
            if body.len() <= self.hub.client.max_payload() || count == 1 {
                return Some(body);
            }
            count = count.div_ceil(2);
        }
    }

    /// Empty without an answer.
    async fn request(&self, shard: ShardId, body: Vec<u8>, limit: Duration) -> Vec<ReportReply> {
        let request = Request::new().payload(body.into()).timeout(Some(limit));
        let answer = self.hub.client.send_request(self.hub.subjects.shard(shard), request);
        // The bound of the request begins when it is sent, which it may not be while the server is away.
        match tokio::time::timeout(limit, answer).await {
            Ok(Ok(message)) => decode::<ReplyBody>(&message.payload).map_or_else(|_| Vec::new(), ReplyBody::replies),
            Ok(Err(_)) | Err(_) => Vec::new(),
        }
    }

    fn owner(&self, shard: ShardId) -> Option<Receiver> {
        let boxes = self.boxes.read().unwrap_or_else(PoisonError::into_inner);
        boxes.get(&shard).map(|open| open.owner.clone())
    }

    fn write(&self) -> std::sync::RwLockWriteGuard<'_, HashMap<ShardId, MailBox>> {
        self.boxes.write().unwrap_or_else(PoisonError::into_inner)
    }

    fn take(self: &Arc<Self>, shard: ShardId, letter: Message) {
        // Only to see whether it arrives.
        if letter.payload.is_empty() {
            return;
        }
        let owner = self.owner(shard);
        match decode(&letter.payload) {
            Ok(Mail::Nudge(instance)) => {
                let Some(owner) = owner else { return };
                // An owner that is gone is replaced, and its successor looks at every inbox.
                let _gone = owner.send(ShardMessage::Nudge(instance));
            }
            Ok(Mail::Begin(beginning)) => {
                let Some(owner) = owner else { return };
                let _gone = owner.send(ShardMessage::Begin(beginning));
            }
            Ok(Mail::Deleted(instance)) => {
                let Some(owner) = owner else { return };
                let _gone = owner.send(ShardMessage::Deleted(instance));
            }
            Ok(Mail::Report(body)) => {
                let Some(answer_to) = letter.reply else { return };
                // Handed over here, so that mail stays in order. Who owns the shard no more does not keep the worker waiting.
                let answer = match body.open() {
                    Letter::Report(report) => {
                        let reply = owner.map(|owner| deliver(&owner, report));
                        async move { vec![answer_of(reply).await.unwrap_or(ReportReply::TryAgain)] }.boxed()
                    }
                    Letter::Questions(questions) => {
                        let count = questions.len();
                        let replies = owner.map(|owner| pass_on(&owner, questions));
                        // Who owned it just now does not; somebody else may.
                        let none = move || vec![ReportReply::TryAgain; count];
                        async move { answer_of(replies).await.unwrap_or_else(none) }.boxed()
                    }
                };
                let client = self.hub.client.clone();
                tokio::spawn(async move {
                    let reply = ReplyBody::to(answer.await);
                    // Without an answer the worker asks again.
                    let _lost = client.publish(answer_to, encode(&reply).into()).await;
                });
            }
            Err(error) => tracing::debug!(target: super::LOG, %error, "mail is left unread"),
        }
    }
}

/// Looks after the boxes until there are none any more.
async fn look_after(room: Weak<MailRoom>) {
    let mut before = HashMap::new();
    loop {
        tokio::time::sleep(LOOK_EVERY).await;
        let Some(room) = room.upgrade() else { return };
        if room.hub.is_up()
            && let Err(error) = room.try_boxes(&mut before).await
        {
            tracing::debug!(target: super::LOG, %error, "boxes for mail cannot be tried");
        }
    }
}

/// The subscription behind a box.
struct Listening {
    room: Weak<MailRoom>,
    shard: ShardId,
    heard: Arc<AtomicU64>,
}

impl Listening {
    /// Passes letters on; once closed, those that have come already.
    async fn run(self, mut letters: Subscriber, mut closed: oneshot::Receiver<()>) {
        let Self { room, shard, heard } = self;
        let mut open = true;
        let mut until = tokio::time::Instant::now();
        loop {
            let letter = tokio::select! {
                letter = letters.next() => letter,
                // Without the server the subscription does not end, and would keep the connection.
                () = tokio::time::sleep_until(until), if !open => return,
                _ = &mut closed, if open => {
                    open = false;
                    until = tokio::time::Instant::now() + CLOSE_TIMEOUT;
                    if letters.drain().await.is_err() {
                        return;
                    }
                    continue;
                }
            };
            let (Some(letter), Some(room)) = (letter, room.upgrade()) else { return };
            heard.fetch_add(1, Ordering::Relaxed);
            // A letter that cannot be handled keeps none of the others: a nudge is made up for, a report is repeated.
            if let Err(panic) = catch_unwind(AssertUnwindSafe(|| room.take(shard, letter))) {
                note_panic(&room.hub.troubles, "mail", panic);
            }
        }
    }
}

async fn answer_of<T>(answer: Option<oneshot::Receiver<T>>) -> Option<T> {
    answer?.await.ok()
}

fn pass_on(owner: &Receiver, questions: Vec<Question>) -> oneshot::Receiver<Vec<ReportReply>> {
    let (answer, answered) = oneshot::channel();
    // Without an owner the answer's sender is dropped.
    let _gone = owner.send(ShardMessage::Ask(questions, answer));
    answered
}

fn deliver(owner: &Receiver, report: Report) -> oneshot::Receiver<ReportReply> {
    let (answer, answered) = oneshot::channel();
    // Without an owner the answer's sender is dropped.
    let _gone = owner.send(ShardMessage::Report(Box::new(report), answer));
    answered
}

async fn ask(owner: &Receiver, report: Report) -> ReportReply {
    match tokio::time::timeout(REPORT_TIMEOUT, deliver(owner, report)).await {
        Ok(Ok(reply)) => reply,
        Ok(Err(_)) | Err(_) => ReportReply::TryAgain,
    }
}
