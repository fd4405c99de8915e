//! What a JetStream broker must stand of a server that is there and does not do its work: a disk that was full, streams
//! that somebody has edited, limits that are met, subscriptions that are gone.

use std::time::{Duration, Instant};

use async_nats::jetstream::{self, stream};
use outlast_broker::jetstream::JetStreamBroker;
use outlast_broker::{Broker, Control, Dispatch, Report, ReportReply, ReportResult, ShardMessage, Withdrawal};
use outlast_core::{ActivityItem, ShardId, TagFilter, Token, Verdict};
use outlast_test_support::SmallDisk;
use tokio::sync::mpsc;

use crate::items::{SOON, activity, item, key, open, report_to, run, tagged, worker};
use crate::server::{Connects as _, Server};
use crate::world::namespace;

/// Longest time until what was edited is as it must be.
pub(crate) const MENDED_WITHIN: Duration = Duration::from_secs(10);

/// Large enough to find no room in what is left of the last page.
fn large(n: u64) -> Vec<Dispatch> {
    let item = ActivityItem { input: "x".repeat(50_000), ..item("a", n) };
    vec![Dispatch { item, worker: None, again: true }]
}

/// As owners do: offers an item until the broker takes it.
async fn offer(broker: &JetStreamBroker, n: u64, limit: Duration) {
    offer_until_taken(broker, large(n), limit).await;
}

pub(crate) async fn offer_until_taken(broker: &JetStreamBroker, items: Vec<Dispatch>, limit: Duration) {
    let begun = Instant::now();
    while let Err(error) = broker.publish(items.clone()).await {
        assert!(begun.elapsed() < limit, "{error}");
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
}

pub(crate) async fn js(server: &Server) -> jetstream::Context {
    jetstream::new(async_nats::connect(&server.url).await.unwrap())
}

/// Waits until `seen` holds.
pub(crate) async fn until(what: &str, mut seen: impl AsyncFnMut() -> bool) {
    let begun = Instant::now();
    while !seen().await {
        assert!(begun.elapsed() < MENDED_WITHIN, "{what}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// Goal: work goes on when the disk has room again. Method: a real full disk, after which nats-server itself would refuse
/// everything until it is restarted.
#[tokio::test(flavor = "multi_thread")]
async fn work_goes_on_after_the_disk_was_full() {
    let disk = SmallDisk::mount("24m");
    let server = Server::own_at(&disk.path().join("store"), "");
    let broker = server.broker("full").await;
    let mut source = open(&broker, "w", TagFilter::DefaultOnly).await;
    let mut losses = broker.state().losses;
    offer(&broker, 1, SOON).await;
    assert_eq!(run(&mut source).await, key("a", 1));

    disk.fill();
    assert!(broker.publish(large(2)).await.is_err(), "the disk is full");
    let told = |broker: &JetStreamBroker| broker.state().troubles.iter().any(|trouble| trouble.reason.contains("disk"));
    until("the trouble is said", async || {
        let _refused = broker.publish(large(2)).await;
        told(&broker)
    })
    .await;
    disk.make_room();
    offer(&broker, 2, Duration::from_secs(20)).await;
    assert_eq!(run(&mut source).await, key("a", 2));
    assert!(*losses.borrow_and_update() > 0, "whatever was queued is handed out again");
}

/// Each of these edits would refuse work, lose it or leave it unacknowledged.
#[tokio::test(flavor = "multi_thread")]
async fn an_edited_stream_of_work_is_set_right() {
    let server = Server::any();
    let (namespace, js) = (namespace(), js(&server).await);
    let broker = server.broker(&namespace).await;
    let mut source = open(&broker, "w", TagFilter::DefaultOnly).await;
    let mut losses = broker.state().losses;
    let name = format!("{namespace}_WORK");
    let config = async || js.get_stream(&name).await.unwrap().cached_info().config.clone();
    let before = config().await;
    let edits: [fn(&mut stream::Config); 6] = [
        |config| config.max_messages = 1,
        |config| config.max_bytes = 100,
        |config| config.max_message_size = 10,
        |config| config.max_age = Duration::from_secs(1),
        |config| config.no_ack = true,
        |config| config.subjects = vec!["elsewhere.>".to_owned()],
    ];
    for (edit, n) in edits.into_iter().zip(1..) {
        let mut edited = before.clone();
        edit(&mut edited);
        if edited.subjects != before.subjects {
            edited.subjects = vec![format!("{namespace}.elsewhere.>")];
        }
        edited.duplicate_window = edited.duplicate_window.min(Duration::from_secs(1));
        js.update_stream(&edited).await.unwrap();
        until("the stream is as it was", async || {
            let now = config().await;
            stream::Config { duplicate_window: before.duplicate_window, ..now } == before
        })
        .await;
        offer(&broker, n, MENDED_WITHIN).await;
        assert_eq!(run(&mut source).await, key("a", n));
    }
    assert!(*losses.borrow_and_update() > 0, "what the edits may have removed is handed out again");
    assert!(
        broker.state().troubles.iter().any(|trouble| trouble.reason.contains("edited")),
        "{:?}",
        broker.state().troubles
    );
}

/// An edit that the server does not let anybody take back.
#[tokio::test(flavor = "multi_thread")]
async fn a_sealed_stream_of_work_is_made_anew() {
    let server = Server::any();
    let (namespace, js) = (namespace(), js(&server).await);
    let broker = server.broker(&namespace).await;
    let mut source = open(&broker, "w", TagFilter::DefaultOnly).await;
    let mut stream = js.get_stream(format!("{namespace}_WORK")).await.unwrap();
    let config = stream::Config { sealed: true, ..stream.info().await.unwrap().config.clone() };
    js.update_stream(config).await.unwrap();
    offer(&broker, 1, MENDED_WITHIN).await;
    assert_eq!(run(&mut source).await, key("a", 1));
}

/// Nothing is kept for them at the server.
#[tokio::test(flavor = "multi_thread")]
async fn a_cancellation_is_heard_whatever_became_of_the_streams() {
    let server = Server::any();
    let (namespace, js) = (namespace(), js(&server).await);
    let broker = server.broker(&namespace).await;
    let (_source, mut control) = broker.pull(worker("w", TagFilter::DefaultOnly)).await.unwrap();
    let mut heard = async |n: u64| {
        broker.withdraw(Withdrawal::Activity(activity("a", n))).await.unwrap();
        let cancelled = tokio::time::timeout(MENDED_WITHIN, control.recv()).await.expect("it is heard");
        assert_eq!(cancelled, Some(Control::Cancel(activity("a", n))));
    };
    heard(1).await;
    js.delete_stream(format!("{namespace}_WORK")).await.unwrap();
    heard(2).await;
}

/// A limit of the account is no reason to make the stream anew: what waits in it would begin again, with no more room.
#[tokio::test(flavor = "multi_thread")]
async fn a_full_account_is_said_and_work_goes_on_when_it_has_room() {
    let server = Server::own_with_config("jetstream { max_file_store: 1MB }");
    let (broker, js) = (server.broker("limit").await, js(&server).await);
    let mut source = open(&broker, "w", TagFilter::DefaultOnly).await;
    let queued = tagged("a", 9, "later");
    broker.publish(vec![Dispatch { item: queued, worker: None, again: false }]).await.unwrap();
    let created = async || js.get_stream("limit_WORK").await.unwrap().cached_info().created;
    let before = created().await;
    let ballast = stream::Config { name: "BALLAST".into(), subjects: vec!["ballast".into()], ..Default::default() };
    js.create_stream(ballast).await.unwrap();
    while js.publish("ballast", vec![7; 50_000].into()).await.unwrap().await.is_ok() {}
    while js.publish("ballast", vec![7; 100].into()).await.unwrap().await.is_ok() {}
    until("the limit is said", async || {
        let _refused = broker.publish(vec![Dispatch { item: item("a", 1), worker: None, again: true }]).await;
        broker.state().troubles.iter().any(|trouble| trouble.reason.contains("limits"))
    })
    .await;
    js.delete_stream("BALLAST").await.unwrap();
    offer(&broker, 1, MENDED_WITHIN).await;
    assert_eq!(run(&mut source).await, key("a", 1));
    assert_eq!(created().await, before, "what waits is left alone");
}

fn rights(more: &str) -> String {
    format!(
        "authorization {{ users = [ {{ user: u, password: p, permissions: {{ publish: \">\", subscribe: {{ allow: \">\" {more} }} }} }} ] }}"
    )
}

/// Goal: subscriptions that the server has dropped are made again. Method: the user loses the right to them for a while, which
/// ends them and not the connection.
async fn dropped_subscriptions_are_made_again(denied: &str) {
    let mut server = Server::own_with_config(&rights(""));
    server.url = server.url.replace("nats://", "nats://u:p@");
    let (broker, other) = (server.broker("rights").await, server.broker("rights").await);
    let (mail, mut letters) = mpsc::unbounded_channel();
    broker.own(&[ShardId(3)], mail).await.unwrap();
    tokio::spawn(async move {
        while let Some(letter) = letters.recv().await {
            let ShardMessage::Report(_, answer) = letter else { continue };
            let _gone = answer.send(ReportReply::Settled(Verdict::Applied));
        }
    });
    let mut source = open(&broker, "w", TagFilter::DefaultOnly).await;
    let report = async || {
        let report = Report {
            key: key("a", 1),
            token: Token(1),
            result: ReportResult::Unregistered { activity: "charge".to_owned() },
        };
        report_to(&other, ShardId(3), report).await == ReportReply::Settled(Verdict::Applied)
    };
    assert!(report().await);
    server.configure(&rights(&format!(", deny: \"{denied}\"")));
    until("reports are lost", async || !report().await).await;
    server.configure(&rights(""));
    let begun = Instant::now();
    while !report().await {
        assert!(begun.elapsed() < 3 * MENDED_WITHIN, "reports arrive again");
    }
    offer(&broker, 1, 3 * MENDED_WITHIN).await;
    let delivery = crate::items::take_within(&mut source, 3 * MENDED_WITHIN).await.expect("work comes again");
    assert_eq!(delivery.item.key, key("a", 1));
}

#[tokio::test(flavor = "multi_thread")]
async fn dropped_subscriptions_to_mail_are_made_again() {
    dropped_subscriptions_are_made_again("rights.shard.>").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn dropped_subscriptions_to_answers_are_made_again() {
    dropped_subscriptions_are_made_again("_INBOX.>").await;
}
