//! The guarantees of the seam, each shown on every broker. The numbers are those of `broker/src/seam.rs`.

use std::collections::BTreeSet;
use std::time::Duration;

use futures::FutureExt as _;
use outlast_broker::{
    Control, Dispatch, Question, Report, ReportReply, ReportResult, Settle, ShardMessage, ShardNotice, ShardRequest,
    Withdrawal,
};
use outlast_core::{
    InboxSeq, InstanceId, InstanceState, Message, MessageKind, OrchestrationStatus, ShardId, StartMessage,
    StartSnapshot, TagFilter, Token, Verdict, WorkerId,
};
use tokio::sync::mpsc;
use tokio::time::timeout;

use crate::items::{
    NEVER, SOON, activity, assert_nothing, in_session, item, key, open, publish, publish_to, report_to, run, tagged,
    take, take_within, worker,
};
use crate::world::{World, on_every_broker};

on_every_broker!(
    dropped_work_comes_again,
    requeued_work_comes_again,
    work_of_a_dropped_source_comes_again,
    work_of_a_closed_source_goes_to_others,
    an_item_goes_to_one_worker,
    tags_route_and_filters_hold,
    tags_that_come_up_later_reach_who_takes_any,
    a_wait_that_is_given_up_loses_nothing,
    an_outstanding_item_is_not_queued_again,
    a_settled_item_can_be_published_again,
    a_session_stays_with_its_holder,
    what_one_worker_has_no_room_for_goes_to_another,
    a_cancel_reaches_the_running_worker,
    a_cancelled_item_is_not_delivered,
    a_later_life_of_a_cancelled_key_is_delivered,
    a_cancel_touches_no_other_life,
    what_is_put_off_comes_after_others,
    questions_are_answered_one_by_one,
    mail_reaches_the_latest_owner_in_order,
    reports_get_the_owners_answer,
    a_report_without_an_owner_is_to_be_tried_again,
    a_watch_sees_what_is_announced,
    a_full_worker_leaves_the_rest_to_others,
    a_worker_that_goes_before_it_takes_leaves_its_item_to_others,
);

/// Guarantee 1.
async fn dropped_work_comes_again(world: World) {
    let mut source = open(&*world.here, "w", TagFilter::DefaultOnly).await;
    publish(&*world.there, item("a", 1)).await;
    drop(take(&mut source).await);
    assert_eq!(run(&mut source).await, key("a", 1));
    assert_nothing(&mut source).await;
}

/// Guarantee 1.
async fn requeued_work_comes_again(world: World) {
    let mut source = open(&*world.here, "w", TagFilter::DefaultOnly).await;
    publish(&*world.there, item("a", 1)).await;
    let delivery = take(&mut source).await;
    (delivery.settle)(Settle::Requeue);
    assert_eq!(run(&mut source).await, key("a", 1));
}

/// Guarantee 1: what a source had fetched goes to others when it is dropped.
async fn work_of_a_dropped_source_comes_again(world: World) {
    let mut gone = open(&*world.here, "gone", TagFilter::DefaultOnly).await;
    for event in 1..=20 {
        publish(&*world.there, item("a", event)).await;
    }
    let held = timeout(SOON, gone.next(10)).await.unwrap().unwrap();
    drop(gone);
    drop(held);
    let mut source = open(&*world.there, "w", TagFilter::DefaultOnly).await;
    let mut seen = BTreeSet::new();
    while seen.len() < 20 {
        seen.insert(run(&mut source).await);
    }
}

/// Guarantee 1: a source that is closed while items come to it gives all of them to others, each once.
async fn work_of_a_closed_source_goes_to_others(world: World) {
    let mut gone = open(&*world.here, "gone", TagFilter::DefaultOnly).await;
    for event in 1..=20 {
        publish(&*world.there, item("a", event)).await;
    }
    let mut held = timeout(SOON, gone.next(200)).await.unwrap().unwrap();
    let more = (21..=200).map(|event| Dispatch { item: item("a", event), worker: None, again: false });
    world.there.publish(more.collect()).await.unwrap();
    // It has asked for as many, and stops.
    let _given_up = timeout(Duration::from_millis(1), gone.next(200)).await.map(|more| held.extend(more.unwrap()));
    gone.close().await;
    let done = held.pop().unwrap();
    (done.settle)(Settle::Ack);
    gone.finish().await;
    let mut source = open(&*world.there, "w", TagFilter::DefaultOnly).await;
    // The in-process broker knows that the attempts of a worker go on in this very process.
    if !world.there.state().is_shared {
        drop(held);
    }
    let mut seen = BTreeSet::new();
    for _ in 1..200 {
        assert!(seen.insert(run(&mut source).await));
    }
    assert_nothing(&mut source).await;
}

/// Guarantee 2.
async fn an_item_goes_to_one_worker(world: World) {
    let mut first = open(&*world.here, "w1", TagFilter::DefaultOnly).await;
    let mut second = open(&*world.there, "w2", TagFilter::DefaultOnly).await;
    let items = (1..=200).map(|event| Dispatch { item: item("a", event), worker: None, again: false });
    world.here.publish(items.collect()).await.unwrap();
    let (mut seen, mut held) = (BTreeSet::new(), Vec::new());
    while held.len() < 200 {
        let taken = tokio::select! {
            taken = first.next(7) => taken,
            taken = second.next(7) => taken,
            () = tokio::time::sleep(SOON) => panic!("only {} of 200 came", held.len()),
        };
        for delivery in taken.unwrap() {
            assert!(seen.insert(delivery.item.key.clone()), "{:?} came twice", delivery.item.key);
            held.push(delivery);
        }
    }
    assert_nothing(&mut first).await;
    assert_nothing(&mut second).await;
    for delivery in held {
        (delivery.settle)(Settle::Ack);
    }
    assert_nothing(&mut first).await;
}

/// Guarantee 2.
async fn tags_route_and_filters_hold(world: World) {
    let mut plain = open(&*world.here, "plain", TagFilter::DefaultOnly).await;
    let mut gpu = open(&*world.here, "gpu", TagFilter::tags(["gpu", "tag with * > . and blanks"])).await;
    let mut both = open(&*world.there, "both", TagFilter::default_and(["fast"])).await;
    let mut none = open(&*world.there, "none", TagFilter::None).await;
    publish(&*world.there, tagged("a", 1, "gpu")).await;
    publish(&*world.there, tagged("a", 2, "tag with * > . and blanks")).await;
    publish(&*world.there, tagged("a", 3, "fast")).await;
    let taken = BTreeSet::from([run(&mut gpu).await, run(&mut gpu).await]);
    assert_eq!(taken, BTreeSet::from([key("a", 1), key("a", 2)]));
    assert_eq!(run(&mut both).await, key("a", 3));
    assert_nothing(&mut plain).await;
    assert_nothing(&mut none).await;
    publish(&*world.there, item("a", 4)).await;
    assert_nothing(&mut gpu).await;
    drop(both);
    assert_eq!(run(&mut plain).await, key("a", 4));
}

/// Guarantee 2.
async fn tags_that_come_up_later_reach_who_takes_any(world: World) {
    publish(&*world.there, tagged("a", 1, "before")).await;
    let mut any = open(&*world.here, "any", TagFilter::Any).await;
    assert_eq!(run(&mut any).await, key("a", 1));
    publish(&*world.there, tagged("a", 2, "after")).await;
    assert_eq!(run(&mut any).await, key("a", 2));
    publish(&*world.there, item("a", 3)).await;
    assert_eq!(run(&mut any).await, key("a", 3));
}

/// Guarantee 1, while waits end at every moment.
async fn a_wait_that_is_given_up_loses_nothing(world: World) {
    let mut source = open(&*world.here, "w", TagFilter::DefaultOnly).await;
    let items = (1..=100).map(|event| Dispatch { item: item("a", event), worker: None, again: false });
    world.there.publish(items.collect()).await.unwrap();
    let (mut seen, mut micros) = (BTreeSet::new(), 0);
    while seen.len() < 100 {
        micros = (micros + 37) % 1_000;
        if let Ok(taken) = timeout(Duration::from_micros(micros), source.next(3)).await {
            for delivery in taken.unwrap() {
                assert!(seen.insert(delivery.item.key.clone()));
                (delivery.settle)(Settle::Ack);
            }
        }
    }
    assert_nothing(&mut source).await;
}

/// Guarantee 3.
async fn an_outstanding_item_is_not_queued_again(world: World) {
    let mut source = open(&*world.here, "w", TagFilter::DefaultOnly).await;
    publish(&*world.here, item("a", 1)).await;
    publish(&*world.there, item("a", 1)).await;
    let held = take(&mut source).await;
    publish(&*world.there, item("a", 1)).await;
    assert_nothing(&mut source).await;
    // The token belongs to what an item is known by.
    publish(&*world.there, outlast_core::ActivityItem { token: Token(7), ..item("a", 2) }).await;
    assert_eq!(run(&mut source).await, key("a", 2));
    (held.settle)(Settle::Ack);
    assert_nothing(&mut source).await;
}

/// Guarantee 3 ends with the item.
async fn a_settled_item_can_be_published_again(world: World) {
    let mut source = open(&*world.here, "w", TagFilter::DefaultOnly).await;
    for _ in 0..3 {
        publish(&*world.there, item("a", 1)).await;
        assert_eq!(run(&mut source).await, key("a", 1));
        assert_nothing(&mut source).await;
    }
}

/// Guarantee 4.
async fn a_session_stays_with_its_holder(world: World) {
    let mut first = open(&*world.here, "w1", TagFilter::DefaultOnly).await;
    let mut second = open(&*world.there, "w2", TagFilter::DefaultOnly).await;
    publish(&*world.here, in_session("a", 1, "s")).await;
    let holder = tokio::select! {
        taken = first.next(1) => { (taken.unwrap().pop().unwrap().settle)(Settle::Ack); "w1" }
        taken = second.next(1) => { (taken.unwrap().pop().unwrap().settle)(Settle::Ack); "w2" }
        () = tokio::time::sleep(SOON) => panic!("the session's first item does not come"),
    };
    let worker = Some(WorkerId::new(holder));
    for event in 2..=5 {
        let item = in_session("a", event, "s");
        world.there.publish(vec![Dispatch { item, worker: worker.clone(), again: false }]).await.unwrap();
    }
    let (holder, other) = if holder == "w1" { (&mut first, &mut second) } else { (&mut second, &mut first) };
    let mut held = Vec::new();
    for _ in 2..=5 {
        held.push(take(holder).await);
    }
    assert_nothing(other).await;
}

/// Guarantee 4: also from where only that worker is given it.
async fn what_one_worker_has_no_room_for_goes_to_another(world: World) {
    let mut full = open(&*world.here, "full", TagFilter::DefaultOnly).await;
    publish(&*world.there, in_session("a", 1, "s")).await;
    publish_to(&*world.there, in_session("a", 2, "t"), "full").await;
    let both = [take(&mut full).await, take(&mut full).await];
    full.admit_sessions(false);
    for delivery in both {
        (delivery.settle)(Settle::Unclaimed);
    }
    assert_nothing(&mut full).await;
    let mut free = open(&*world.there, "free", TagFilter::DefaultOnly).await;
    let taken = BTreeSet::from([run(&mut free).await, run(&mut free).await]);
    assert_eq!(taken, BTreeSet::from([key("a", 1), key("a", 2)]));
    assert_nothing(&mut full).await;
}

/// Guarantee 5.
async fn a_cancel_reaches_the_running_worker(world: World) {
    let (mut source, mut control) = world.here.pull(worker("w", TagFilter::DefaultOnly)).await.unwrap();
    publish(&*world.there, item("a", 1)).await;
    let _running = take(&mut source).await;
    world.there.withdraw(Withdrawal::Activity(activity("a", 1))).await.unwrap();
    assert_eq!(timeout(SOON, control.recv()).await.unwrap(), Some(Control::Cancel(activity("a", 1))));
}

/// Guarantee 5: the cancellation comes before any worker does.
async fn a_cancelled_item_is_not_delivered(world: World) {
    publish(&*world.there, item("a", 1)).await;
    publish(&*world.there, item("a", 2)).await;
    world.there.withdraw(Withdrawal::Activity(activity("a", 1))).await.unwrap();
    tokio::time::sleep(NEVER).await;
    let mut source = open(&*world.here, "w", TagFilter::DefaultOnly).await;
    assert_eq!(run(&mut source).await, key("a", 2));
    assert_nothing(&mut source).await;
}

/// Guarantee 5 is for what was published before.
async fn a_later_life_of_a_cancelled_key_is_delivered(world: World) {
    let mut source = open(&*world.here, "w", TagFilter::DefaultOnly).await;
    publish(&*world.there, item("a", 1)).await;
    world.there.withdraw(Withdrawal::Activity(activity("a", 1))).await.unwrap();
    tokio::time::sleep(NEVER).await;
    assert_nothing(&mut source).await;
    let again = outlast_core::ActivityItem { token: Token(77), ..item("a", 1) };
    publish(&*world.there, again).await;
    assert_eq!(take(&mut source).await.item.token, Token(77));
}

/// Guarantee 5 is for one life.
async fn a_cancel_touches_no_other_life(world: World) {
    let (mut source, mut control) = world.here.pull(worker("w", TagFilter::DefaultOnly)).await.unwrap();
    let later = outlast_core::ActivityItem { token: Token(77), ..item("a", 1) };
    publish(&*world.there, item("a", 1)).await;
    let _first = take(&mut source).await;
    publish(&*world.there, later.clone()).await;
    let second = take(&mut source).await;
    assert_eq!(second.item.token, Token(77));
    world.there.withdraw(Withdrawal::Activity(activity("a", 1))).await.unwrap();
    assert_eq!(timeout(SOON, control.recv()).await.unwrap(), Some(Control::Cancel(activity("a", 1))));
    assert!(timeout(NEVER, control.recv()).await.is_err());
    world.there.withdraw(Withdrawal::Activity(later.activity())).await.unwrap();
    assert_eq!(timeout(SOON, control.recv()).await.unwrap(), Some(Control::Cancel(later.activity())));
}

/// What a worker puts off lets others go first, comes again, and can be cancelled meanwhile.
async fn what_is_put_off_comes_after_others(world: World) {
    let mut source = open(&*world.here, "w", TagFilter::DefaultOnly).await;
    for event in 1..=2 {
        publish(&*world.there, item("a", event)).await;
        (take(&mut source).await.settle)(Settle::Later(Duration::from_millis(600)));
    }
    publish(&*world.there, item("a", 3)).await;
    assert_eq!(run(&mut source).await, key("a", 3));
    world.there.withdraw(Withdrawal::Activity(activity("a", 1))).await.unwrap();
    assert_eq!(run(&mut source).await, key("a", 2));
    assert_nothing(&mut source).await;
}

/// Guarantee 6.
async fn mail_reaches_the_latest_owner_in_order(world: World) {
    let (former, mut dead_letters) = mpsc::unbounded_channel();
    let (owner, mut letters) = mpsc::unbounded_channel();
    let shards: Vec<ShardId> = (0..64).map(ShardId).collect();
    world.here.own(&shards, former.clone()).await.unwrap();
    world.here.own(&shards, owner.clone()).await.unwrap();
    world.here.disown(&shards, &former).await;
    for number in 0..100 {
        world.there.notify(ShardId(63), ShardNotice::Nudge(InstanceId::new(format!("i{number}"))));
    }
    for number in 0..100 {
        match timeout(SOON, letters.recv()).await.unwrap().unwrap() {
            ShardMessage::Notice(ShardNotice::Nudge(instance)) => assert_eq!(instance.as_str(), format!("i{number}")),
            other => panic!("only nudges were sent, not {other:?}"),
        }
    }
    let small = beginning("in".to_owned());
    world.there.notify(ShardId(63), ShardNotice::Started(Box::new(small.clone())));
    // What does not fit into a message is a nudge at least.
    let large = beginning("x".repeat(1 << 20));
    world.there.notify(ShardId(63), ShardNotice::Started(Box::new(large.clone())));
    for sent in [small, large] {
        match timeout(SOON, letters.recv()).await.unwrap().unwrap() {
            ShardMessage::Notice(ShardNotice::Started(beginning)) => assert_eq!(*beginning, sent),
            ShardMessage::Notice(ShardNotice::Nudge(instance)) => {
                assert!(instance == sent.instance && sent.seq == InboxSeq(1 << 20))
            }
            ShardMessage::Notice(ShardNotice::Deleted(_)) | ShardMessage::Ask(..) | ShardMessage::Report(..) => {
                panic!("it was not sent")
            }
        }
    }
    world.there.notify(ShardId(63), ShardNotice::Deleted(InstanceId::new("gone")));
    let sent = timeout(SOON, letters.recv()).await.unwrap();
    assert!(
        matches!(&sent, Some(ShardMessage::Notice(ShardNotice::Deleted(instance))) if instance.as_str() == "gone"),
        "{sent:?}"
    );
    world.here.disown(&shards, &owner).await;
    world.there.notify(ShardId(63), ShardNotice::Nudge(InstanceId::new("late")));
    assert!(timeout(NEVER, letters.recv()).await.is_err());
    assert!(dead_letters.try_recv().is_err());
}

fn beginning(input: String) -> StartSnapshot {
    let (instance, seq) = (InstanceId::new("new"), InboxSeq(input.len() as i64));
    let start = StartMessage { name: "order".to_owned(), version: None, input, parent: None, traceparent: None };
    StartSnapshot { instance, message: Message { id: "m".into(), kind: MessageKind::Start(start) }, seq }
}

fn report() -> Report {
    let result = ReportResult::Unregistered { activity: "charge".to_owned() };
    Report { key: key("a", 1), token: Token(1), result }
}

/// Guarantee 7.
async fn reports_get_the_owners_answer(world: World) {
    let (owner, mut letters) = mpsc::unbounded_channel();
    world.here.own(&[ShardId(3)], owner).await.unwrap();
    let answers = [
        ReportReply::Settled(Verdict::Applied),
        ReportReply::Settled(Verdict::Unknown),
        ReportReply::Moved(ShardId(9)),
        ReportReply::TryAgain,
    ];
    let owner = async {
        for answer in answers {
            match letters.recv().await.unwrap() {
                ShardMessage::Report(report, reply) => {
                    assert_eq!((report.key, report.token), (key("a", 1), Token(1)));
                    reply.send(answer).unwrap();
                }
                other => panic!("only reports were sent, not {other:?}"),
            }
        }
        // An owner that goes away without an answer.
        drop(letters.recv().await);
    };
    let worker = async {
        for answer in answers {
            assert_eq!(report_to(&*world.there, ShardId(3), report()).await, answer);
        }
        assert_eq!(report_to(&*world.there, ShardId(3), report()).await, ReportReply::TryAgain);
    };
    timeout(SOON, async { tokio::join!(owner, worker) }).await.unwrap();
}

/// Guarantee 7.
async fn a_report_without_an_owner_is_to_be_tried_again(world: World) {
    // Less than the wait for an owner that does not answer.
    let reply = timeout(Duration::from_secs(4), report_to(&*world.here, ShardId(5), report())).await;
    assert_eq!(reply.unwrap(), ReportReply::TryAgain);
}

/// Guarantee 7 for questions.
async fn questions_are_answered_one_by_one(world: World) {
    let (owner, mut letters) = mpsc::unbounded_channel();
    world.here.own(&[ShardId(3)], owner).await.unwrap();
    let question = |event: u64| Question { activity: activity("a", event), begun: event.is_multiple_of(2) };
    let answers = [
        ReportReply::Settled(Verdict::Applied),
        ReportReply::Settled(Verdict::Unknown),
        ReportReply::Moved(ShardId(9)),
        ReportReply::TryAgain,
    ];
    for count in 1..=answers.len() {
        let asked: Vec<Question> = (1..=count as u64).map(question).collect();
        let (questions, expected) = (asked.clone(), answers[..count].to_vec());
        let owner = async {
            match letters.recv().await.unwrap() {
                ShardMessage::Ask(questions, reply) => {
                    assert_eq!(questions, asked);
                    reply.send(expected.clone()).unwrap();
                }
                other => panic!("only questions were sent, not {other:?}"),
            }
        };
        let worker = world.there.request(ShardId(3), ShardRequest::Wanted(questions));
        let (answered, ()) = timeout(SOON, async { tokio::join!(worker, owner) }).await.unwrap();
        assert_eq!(answered, expected);
    }
    let nobody = timeout(SOON, world.there.request(ShardId(5), ShardRequest::Wanted(vec![question(1), question(2)])))
        .await
        .unwrap();
    assert_eq!(nobody, []);
}

/// Guarantee 8.
async fn a_watch_sees_what_is_announced(world: World) {
    let instance = InstanceId::new("order * > 1");
    let mut watch = world.here.watch(&instance);
    let mut second = world.here.watch(&instance);
    let state = InstanceState { custom_status: Some("half".to_owned()), ..InstanceState::default() };
    // A watch takes hold in a moment; what is announced before may be missed.
    tokio::time::sleep(NEVER).await;
    world.there.publish_status(&InstanceId::new("other"), Some(&state), None);
    world.there.publish_status(&instance, Some(&state), None);
    timeout(SOON, watch.changed()).await.unwrap().unwrap();
    timeout(SOON, second.changed()).await.unwrap().unwrap();
    let status = watch.borrow_and_update().status.clone();
    assert_eq!(status, Some(state.to_status()));
    assert!(matches!(status, Some(OrchestrationStatus::Running { .. })));
    world.there.publish_status(&instance, None, None);
    timeout(SOON, watch.changed()).await.unwrap().unwrap();
    assert_eq!(watch.borrow_and_update().status, None);
    // Whoever waits again, after nobody did, hears of it too.
    drop((watch, second));
    tokio::time::sleep(Duration::from_millis(50)).await;
    let mut watch = world.here.watch(&instance);
    tokio::time::sleep(NEVER).await;
    world.there.publish_status(&instance, Some(&state), None);
    timeout(SOON, watch.changed()).await.unwrap().unwrap();
}

/// Guarantee 2: what a source was not asked for is left to others.
async fn a_full_worker_leaves_the_rest_to_others(world: World) {
    let mut full = open(&*world.here, "full", TagFilter::DefaultOnly).await;
    publish(&*world.there, item("a", 1)).await;
    let _held = take(&mut full).await;
    let mut free = open(&*world.there, "free", TagFilter::DefaultOnly).await;
    let items = (2..=50).map(|event| Dispatch { item: item("a", event), worker: None, again: false });
    world.there.publish(items.collect()).await.unwrap();
    let mut seen = BTreeSet::new();
    while seen.len() < 49 {
        let delivery = take_within(&mut free, SOON).await.expect("the full worker gives back");
        seen.insert(delivery.item.key.clone());
        (delivery.settle)(Settle::Ack);
    }
}

/// Guarantee 1: whoever was to take an item and is gone, others take it.
async fn a_worker_that_goes_before_it_takes_leaves_its_item_to_others(world: World) {
    let mut gone = open(&*world.here, "a", TagFilter::DefaultOnly).await;
    let mut other = open(&*world.here, "b", TagFilter::DefaultOnly).await;
    assert!(gone.next(1).now_or_never().is_none());
    let waits = tokio::spawn(async move { run(&mut other).await });
    tokio::time::sleep(NEVER).await;
    publish(&*world.there, item("a", 1)).await;
    drop(gone);
    assert_eq!(timeout(SOON, waits).await.unwrap().unwrap(), key("a", 1));
}
