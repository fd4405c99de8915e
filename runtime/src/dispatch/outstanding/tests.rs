//! What an owner keeps of the activities that it waits for.

use std::time::Duration;

use outlast_core::{
    ActivityItem, ActivityKey, ActivityTimeouts, Epoch, EventId, ExecutionId, InstanceId, Millis, ShardId, Token,
};

use super::{Outstanding, Place, Terms};

fn item(event: u64, tag: Option<&str>) -> ActivityItem {
    let (instance, execution) = (InstanceId::new("i"), ExecutionId(1));
    ActivityItem {
        key: ActivityKey { instance, execution, event: EventId(event) },
        token: Token(event),
        name: "Echo".to_owned(),
        input: String::new(),
        input_stored: false,
        tag: tag.map(str::to_owned),
        session_id: None,
        attempt: 1,
        scheduled_at: Millis(0),
        timeouts: ActivityTimeouts::default(),
        first_event: EventId(event),
        orchestration: String::new(),
        version: String::new(),
        traceparent: None,
    }
}

fn place(shard: u16) -> Place {
    Place { shard: ShardId(shard), epoch: Epoch(1), generation: 0 }
}

fn terms(shard: u16, may_have_run: bool) -> Terms {
    Terms { place: place(shard), now: Millis(0), may_have_run }
}

fn admit(outstanding: &Outstanding, events: std::ops::Range<u64>, tag: Option<&str>) -> Vec<u64> {
    let items = events.map(|event| item(event, tag)).collect();
    let admitted = outstanding.admit(items, terms(0, false));
    admitted.into_iter().map(|item| item.key.event.0).collect()
}

fn waiting(outstanding: &Outstanding) -> Vec<u64> {
    outstanding.lock().take_waiting().into_iter().map(|(item, _)| item.key.event.0).collect()
}

#[test]
fn a_tag_has_a_window_and_the_rest_follows_in_order() {
    let outstanding = Outstanding::new(4);
    assert_eq!(admit(&outstanding, 0..10, None), [0, 1, 2, 3]);
    assert_eq!(admit(&outstanding, 10..12, Some("gpu")), [10, 11]);
    // An activity that the broker has is given again; one that waits goes on waiting.
    assert_eq!(admit(&outstanding, 3..5, None), [3]);
    outstanding.remove(&[item(5, None).key, item(0, None).key, item(1, None).key]);
    assert_eq!(waiting(&outstanding), [4, 6]);
    assert!(waiting(&outstanding).is_empty());
    outstanding.forget(&[ShardId(0)]);
    assert!(outstanding.len() == 0 && outstanding.lock().tags.values().all(|tag| tag.given == 0));
    assert!(waiting(&outstanding).is_empty() && outstanding.lock().tags.is_empty());
}

#[test]
fn what_others_look_after_takes_no_room() {
    let outstanding = Outstanding::new(2);
    outstanding.admit(vec![item(0, None)], terms(0, false));
    outstanding.admit(vec![item(1, None), item(2, None)], terms(1, false));
    outstanding.keep_only(|kept| kept == place(1));
    assert_eq!(waiting(&outstanding), [2]);
    assert_eq!(outstanding.keep_of(&InstanceId::new("other"), &[]), []);
    assert_eq!(outstanding.len(), 2);
    outstanding.keep_of(&InstanceId::new("i"), &[]);
    assert!(outstanding.len() == 0 && outstanding.lock().tags.values().all(|tag| tag.given == 0));
}

#[test]
fn only_what_nobody_has_begun_in_time_is_late() {
    let outstanding = Outstanding::new(1);
    let mut items: Vec<ActivityItem> = (0..4).map(|event| item(event, None)).collect();
    for item in &mut items[..3] {
        item.timeouts = ActivityTimeouts::default().schedule_to_start(Duration::ZERO);
    }
    outstanding.admit(items.clone(), terms(0, false));
    outstanding.begun(&items[1].activity());
    outstanding.remove(&[items[2].key.clone()]);
    let late = outstanding.take_late();
    assert_eq!(late.iter().map(|item| item.key.event.0).collect::<Vec<_>>(), [0]);
    assert!(outstanding.lock().deadlines.is_empty());
    // The window is free for the next.
    assert_eq!(waiting(&outstanding), [1]);
}
#[test]
fn what_is_given_up_as_late_is_stopped_when_that_is_committed_and_not_before() {
    let outstanding = Outstanding::new(4);
    let late = |event| ActivityItem {
        timeouts: ActivityTimeouts::default().schedule_to_start(Duration::ZERO),
        ..item(event, None)
    };
    outstanding.admit(vec![late(0), late(1)], terms(0, false));
    assert_eq!(outstanding.take_late().len(), 2);
    assert_eq!(outstanding.remove(&[late(0).key]), [late(0).activity()]);
    // The other one's commit has failed: it is handed out again, and is late again.
    assert_eq!(outstanding.admit(vec![late(1)], terms(0, true)), [late(1)]);
    assert_eq!(outstanding.take_late(), [late(1)]);
    assert_eq!(outstanding.keep_of(&InstanceId::new("i"), &[]), [late(1).activity()]);
    assert_eq!(outstanding.remove(&[late(1).key]), []);
}

#[test]
fn what_the_store_does_not_name_any_more_is_stopped() {
    let outstanding = Outstanding::new(2);
    outstanding.admit((0..3).map(|event| item(event, None)).collect(), terms(0, false));
    let later = ActivityItem { token: Token(77), ..item(1, None) };
    // The second has the token of a former life, the third was never given to the broker.
    let to_stop = outstanding.keep_of(&InstanceId::new("i"), &[item(0, None), later.clone()]);
    assert_eq!(to_stop, [item(1, None).activity()]);
    assert_eq!(outstanding.admit(vec![later.clone()], terms(0, false)), std::slice::from_ref(&later));
    assert_eq!(outstanding.places([item(1, None).activity(), later.activity()].iter()), [None, Some(place(0))]);
    assert_eq!(outstanding.cancel(&later.key), Some(later.activity()));
    assert_eq!(outstanding.cancel(&later.key), None);
}

#[tokio::test(start_paused = true)]
async fn an_offer_that_the_broker_refuses_does_not_make_the_next_one_late() {
    let outstanding = Outstanding::new(4);
    admit(&outstanding, 0..1, None);
    // Longer than all pauses would have grown to.
    let mut refusals = 0;
    for _ in 0..300 {
        tokio::time::advance(Duration::from_secs(1)).await;
        let due = outstanding.due();
        refusals += due.len();
        outstanding.refused(&due);
    }
    assert!(refusals > 100, "{refusals}");
    tokio::time::advance(super::REFUSED_AGAIN).await;
    assert_eq!(outstanding.due().len(), 1);
    tokio::time::advance(super::REFUSED_AGAIN).await;
    assert_eq!(outstanding.due(), [], "the broker has it");
    // The pause is the one after a first offer.
    tokio::time::advance(super::FIRST_OFFER * 2).await;
    assert_eq!(outstanding.due().len(), 1);
}
