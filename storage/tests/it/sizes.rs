//! What is large takes longer and is refused when it cannot be stored; it harms none of those that share a trip with it.

use outlast_core::{LOAD_BYTES_MAX, Message, MessageId, MessageKind};
use outlast_storage::{CallStore as _, InboxCursor, SendOptions, TurnStore as _};

use crate::fixture::{Database, id, start};

#[tokio::test(flavor = "multi_thread")]
async fn an_inbox_that_is_larger_than_a_trip_is_read_in_parts_and_its_neighbours_beside_it() {
    let database = Database::new();
    let store = database.connect().await;
    for name in ["large", "a", "b"] {
        start(&store, name).await;
    }
    let data = "x".repeat(8 << 20);
    let count = LOAD_BYTES_MAX / data.len() + 2;
    for number in 0..count {
        let kind = MessageKind::Raise { name: "event".to_owned(), data: data.clone() };
        let message = Message { id: MessageId::new(format!("m{number}")), kind };
        store.send(&id("large"), message, SendOptions::first_try(10)).await.unwrap();
    }
    let ids = ["large", "a", "b"].map(id);
    let (large, a, b) = tokio::join!(store.load(&ids[0]), store.load(&ids[1]), store.load(&ids[2]));
    let large = large.unwrap().unwrap();
    assert_eq!(large.inbox.len(), count + 1);
    assert!(large.inbox.is_sorted_by_key(|row| row.seq));
    assert!(a.unwrap().unwrap().inbox.len() == 1 && b.unwrap().unwrap().inbox.len() == 1);
    let (read, beside) =
        tokio::join!(store.inbox(&ids[0], InboxCursor::default()), store.inbox(&ids[1], InboxCursor::default()));
    assert_eq!(read.unwrap().0, large.inbox);
    assert_eq!(beside.unwrap().0.len(), 1);
    database.drop_schema().await;
}
