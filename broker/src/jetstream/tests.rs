//! What can be shown without a server: names never collide, secrets are never shown.

use outlast_core::{ActivityItem, ActivityKey, ActivityTimeouts, EventId, ExecutionId, InstanceId, Token, Verdict};
use proptest::prelude::*;

use super::subjects::{Subjects, WorkQueue, token};
use super::wire::{Asked, ReplyBody, ReportBody, ShardBody};
use super::{Auth, JetStreamOptions};
use crate::{Question, ReportReply};

fn item(instance: &str, numbers: [u64; 3]) -> ActivityItem {
    let [execution, event, token] = numbers;
    let key =
        ActivityKey { instance: InstanceId::new(instance), execution: ExecutionId(execution), event: EventId(event) };
    ActivityItem {
        key,
        token: Token(token),
        name: String::new(),
        input: String::new(),
        input_stored: false,
        tag: None,
        session_id: None,
        attempt: 1,
        scheduled_at: Default::default(),
        timeouts: ActivityTimeouts::default(),
        first_event: EventId(event),
        orchestration: String::new(),
        version: String::new(),
        traceparent: None,
    }
}

fn strings() -> impl Strategy<Value = String> {
    prop_oneof!["\\PC{0,40}", "[a-zA-Z0-9_=-]{0,40}", "=[0-9a-f]{32}", Just("=default".to_owned())]
}

proptest! {
    #[test]
    fn distinct_strings_have_distinct_tokens(one in strings(), two in strings()) {
        prop_assert_eq!(one == two, token(&one) == token(&two));
        prop_assert_ne!(WorkQueue::tag(Some(&one)), WorkQueue::tag(None));
    }

    #[test]
    fn tokens_are_harmless_in_subjects(text in strings()) {
        let token = token(&text);
        prop_assert!(!token.is_empty() && token.len() <= 33);
        prop_assert!(token.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_-=".contains(&byte)));
    }

    #[test]
    fn queues_are_found_by_their_consumers(text in strings()) {
        for queue in [WorkQueue::tag(Some(&text)), WorkQueue::session(Some(&text)), WorkQueue::worker(&text.as_str().into()), WorkQueue::tag(None)] {
            prop_assert_eq!(WorkQueue::of_consumer(&queue.consumer()), Some(queue));
        }
    }

    #[test]
    fn distinct_items_have_distinct_subjects(
        one in (strings(), any::<[u64; 3]>()),
        two in (strings(), any::<[u64; 3]>()),
    ) {
        let subjects = Subjects::new("test").unwrap();
        let subject = |(instance, numbers): &(String, [u64; 3])| subjects.item(&WorkQueue::tag(None), &item(instance, *numbers));
        prop_assert_eq!(one == two, subject(&one) == subject(&two));
    }
}

#[test]
fn options_hide_secrets() {
    let secret = "s3cret";
    let auths = [
        Auth::Token(secret.to_owned()),
        Auth::NkeySeed(secret.to_owned()),
        Auth::UserPassword { user: "me".to_owned(), password: secret.to_owned() },
    ];
    for auth in auths {
        let options = JetStreamOptions { auth, ..JetStreamOptions::new(format!("nats://me:{secret}@localhost:4222")) };
        let shown = format!("{options:?}");
        assert!(!shown.contains(secret) && shown.contains("localhost"), "{shown}");
    }
}

#[test]
fn only_what_removes_work_raises_an_alarm() {
    let subjects = Subjects::new("test").unwrap();
    for call in
        ["$JS.API.STREAM.PURGE.test_WORK", "$JS.API.STREAM.DELETE.test_WORK", "$JS.API.STREAM.MSG.DELETE.test_WORK"]
    {
        assert!(subjects.removes_work(call), "{call}");
    }
    for call in [
        "$JS.API.STREAM.PURGE.test_CONTROL",
        "$JS.API.STREAM.INFO.test_WORK",
        "$JS.API.CONSUMER.DELETE.test_WORK.tag-x",
    ] {
        assert!(!subjects.removes_work(call), "{call}");
    }
    assert_eq!(
        subjects.deletes_consumer("$JS.API.CONSUMER.DELETE.test_WORK.tag-x"),
        Some(WorkQueue::Tag("x".to_owned()))
    );
    assert_eq!(subjects.deletes_consumer("$JS.API.CONSUMER.DELETE.other_WORK.tag-x"), None);
}

/// Whatever nodes say to each other; what the server itself is told (requests for work, verdicts on items) has its format.
#[test]
fn every_body_begins_with_its_version_and_a_newer_one_is_left_unread() {
    use outlast_core::{DecodeError, decode, encode};

    use super::wire::{CancelBody, ReplyBody, ShardBody, StatusUpdateBody, TagBody};

    let key = item("a", [1, 2, 3]).key;
    let bodies = [
        encode(&item("a", [1, 2, 3])),
        encode(&ShardBody::Nudge(InstanceId::new("a"))),
        encode(&ReplyBody::TryAgain),
        encode(&CancelBody { key, token: Some(Token(3)) }),
        encode(&TagBody { consumer: "tag-x".to_owned() }),
        encode(&StatusUpdateBody { status: None }),
    ];
    for mut body in bodies {
        assert_eq!(body[0], 1);
        body[0] = 2;
        assert!(matches!(decode::<ShardBody>(&body), Err(DecodeError::Newer(2))));
    }
}

/// What nodes before it have sent and answered, by hand: the key, the token, a question.
#[test]
fn older_nodes_ask_and_answer_one_question_at_a_time() {
    #[derive(serde::Serialize)]
    enum OldMail {
        Report(OldReport),
    }
    #[derive(serde::Serialize)]
    struct OldReport {
        key: ActivityKey,
        token: Token,
        result: OldResult,
    }
    #[derive(serde::Serialize)]
    enum OldResult {
        Begun,
    }
    let item = item("i", [1, 2, 3]);
    let asked = OldMail::Report(OldReport { key: item.key.clone(), token: item.token, result: OldResult::Begun });
    let asked = outlast_core::encode(&asked);
    let Ok(ShardBody::Report(body)) = outlast_core::decode(&asked) else { panic!("it is not read") };
    let Asked::Questions(questions) = body.open() else { panic!("it is a question") };
    assert_eq!(questions, [Question { activity: item.activity(), begun: true }]);
    // The same bytes go out, so that an older owner reads them.
    let body = ReportBody::asking(&questions).unwrap();
    assert_eq!(outlast_core::encode(&ShardBody::Report(Box::new(body))), asked);
    let reply = ReportReply::Settled(Verdict::Applied);
    let answered = outlast_core::encode(&ReplyBody::to(vec![reply]));
    assert_eq!(answered, outlast_core::encode(&std::collections::BTreeMap::from([("Settled", "Applied")])));
    let Ok(body) = outlast_core::decode::<ReplyBody>(&answered) else { panic!("it is not read") };
    assert_eq!(body.replies(), [reply]);
}
