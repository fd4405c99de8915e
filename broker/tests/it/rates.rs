//! How fast a server and one worker are. Run by hand:
//! `cargo test --release -p outlast-broker --test it rates -- --ignored --nocapture`.

use std::sync::Arc;
use std::time::{Duration, Instant};

use outlast_broker::{Broker, Dispatch, Report, ReportReply, ReportResult, Settle, ShardMessage};
use outlast_core::{ShardId, TagFilter, Token, Verdict};
use tokio::sync::mpsc;

use crate::items::{item, key, open, publish, report_to, tagged, take};
use crate::server::{Connects as _, Server};

const ITEMS: u64 = 60_000;

fn rate(count: u64, begun: Instant) -> u64 {
    (count as f64 / begun.elapsed().as_secs_f64()) as u64
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "a measurement"]
async fn rates() {
    let server = Server::any();
    let broker = Arc::new(server.broker("rates").await);
    let mut source = open(&*broker, "w", TagFilter::DefaultOnly).await;
    let other = Dispatch { item: tagged("t", 1, "gpu"), worker: None, again: false };
    broker.publish(vec![other]).await.unwrap();

    let mut waits = Vec::new();
    for event in 0..500 {
        let begun = Instant::now();
        let publishing = tokio::spawn({
            let broker = Arc::clone(&broker);
            async move { publish(&*broker, item("latency", event)).await }
        });
        let delivery = take(&mut source).await;
        waits.push(begun.elapsed());
        (delivery.settle)(Settle::Ack);
        publishing.await.unwrap();
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    waits.sort();
    println!("publish to delivery: p50 {:?}, p99 {:?}", waits[250], waits[495]);

    drop(source);
    for interleaved in [false, true] {
        let begun = Instant::now();
        let tasks: Vec<_> = (0..8_u64)
            .map(|task| {
                let broker = Arc::clone(&broker);
                tokio::spawn(async move {
                    for batch in 0..ITEMS / 8 / 100 {
                        let one = |event| {
                            let id = format!("i{task}-{interleaved}");
                            let gpu = interleaved && event % 2 == 0;
                            let item = if gpu { tagged(&id, event, "gpu") } else { item(&id, event) };
                            Dispatch { item, worker: None, again: false }
                        };
                        broker.publish((batch * 100..(batch + 1) * 100).map(one).collect()).await.unwrap();
                    }
                })
            })
            .collect();
        for task in tasks {
            task.await.unwrap();
        }
        println!("publishes in hundreds by eight tasks: {}/s", rate(ITEMS, begun));
        let again = Instant::now();
        let repeated = (0..1_000).map(|event| Dispatch { item: item("i0-false", event), worker: None, again: false });
        broker.publish(repeated.collect()).await.unwrap();
        println!("repeated publishes: {}/s", rate(1_000, again));

        let mine = if interleaved { ITEMS / 2 } else { ITEMS };
        let mut source = open(&*broker, "w2", TagFilter::DefaultOnly).await;
        let (begun, mut count, mut calls, mut again) = (Instant::now(), 0, 0, 0);
        while count < mine {
            let deliveries = source.next(64).await.unwrap();
            calls += 1;
            for delivery in deliveries {
                count += 1;
                again += u64::from(delivery.redelivered);
                (delivery.settle)(Settle::Ack);
            }
        }
        println!("taken with room 64: {}/s, {} a call, {again} redelivered", rate(count, begun), count / calls);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "a measurement"]
async fn rates_of_reports() {
    let server = Server::any();
    let (owner, worker) = (server.broker("reports").await, Arc::new(server.broker("reports").await));
    let (mail, mut letters) = mpsc::unbounded_channel();
    owner.own(&[ShardId(1)], mail).await.unwrap();
    tokio::spawn(async move {
        while let Some(letter) = letters.recv().await {
            if let ShardMessage::Report(_, answer) = letter {
                answer.send(ReportReply::Settled(Verdict::Applied)).unwrap();
            }
        }
    });
    for tasks in [1, 64, 256] {
        let begun = Instant::now();
        let each = 20_000 / tasks;
        let reporting: Vec<_> = (0..tasks)
            .map(|_| {
                let worker = Arc::clone(&worker);
                tokio::spawn(async move {
                    for event in 0..each {
                        let result = ReportResult::Unregistered { activity: "charge".to_owned() };
                        let report = Report { key: key("a", event), token: Token(1), result };
                        assert_eq!(
                            report_to(&*worker, ShardId(1), report).await,
                            ReportReply::Settled(Verdict::Applied)
                        );
                    }
                })
            })
            .collect();
        for task in reporting {
            task.await.unwrap();
        }
        println!("reports by {tasks} tasks: {}/s", rate(each * tasks, begun));
    }
}

/// Work of a tag flows while a great backlog of another waits for its workers.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "a measurement"]
async fn rates_beside_a_backlog() {
    let server = Server::any();
    let broker = server.broker("backlog").await;
    let begun = Instant::now();
    for batch in 0..300_u64 {
        let waiting = (batch * 1_000..(batch + 1) * 1_000).map(|event| tagged("waits", event, "gpu"));
        broker.publish(waiting.map(|item| Dispatch { item, worker: None, again: false }).collect()).await.unwrap();
    }
    println!("publishes in thousands by one task: {}/s", rate(300_000, begun));
    let mut source = open(&broker, "w", TagFilter::DefaultOnly).await;
    let mut waits = Vec::new();
    for event in 0..500 {
        let begun = Instant::now();
        publish(&broker, item("latency", event)).await;
        let delivery = take(&mut source).await;
        waits.push(begun.elapsed());
        (delivery.settle)(Settle::Ack);
    }
    waits.sort();
    println!("publish and delivery, one by one: p50 {:?}, p99 {:?}", waits[250], waits[495]);
    let (begun, mut count) = (Instant::now(), 0);
    for batch in 0..100_u64 {
        let items = (batch * 100..(batch + 1) * 100).map(|event| Dispatch {
            item: item("flow", event),
            worker: None,
            again: false,
        });
        broker.publish(items.collect()).await.unwrap();
        while count < (batch + 1) * 100 {
            for delivery in source.next(64).await.unwrap() {
                count += 1;
                (delivery.settle)(Settle::Ack);
            }
        }
    }
    println!("published and taken in hundreds: {}/s", rate(count, begun));
    let mut gpu = open(&broker, "gpu", TagFilter::tags(["gpu"])).await;
    let (begun, mut count) = (Instant::now(), 0);
    while count < 300_000 {
        for delivery in gpu.next(64).await.unwrap() {
            count += 1;
            (delivery.settle)(Settle::Ack);
        }
    }
    println!("backlog taken: {}/s", rate(count, begun));
}
