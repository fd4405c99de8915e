//! Which clocks of a database are taken, told of or refused. A schema reads its clock by one function, which a test may replace.

use std::sync::{Arc, Mutex};

use outlast_storage::postgres::PostgresStore;
use outlast_storage::{Error, LeaseStore};
use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Metadata, Subscriber};

use crate::fixture::{Database, join};

/// Makes the schema's clock differ from the server's by so many seconds.
async fn shift(database: &Database, seconds: i64) {
    let sql = format!(
        "CREATE OR REPLACE FUNCTION now_ms() RETURNS int8 LANGUAGE sql VOLATILE RETURN \
         floor(extract(epoch FROM clock_timestamp()) * 1000)::int8 + {seconds} * 1000::int8"
    );
    database.execute(&sql).await;
}

async fn refusal(database: &Database) -> String {
    match PostgresStore::connect(&database.url, database.options.clone()).await {
        Err(Error::Unusable(why)) => why.to_string(),
        Err(other) => panic!("{other:?}"),
        Ok(_) => panic!("connected"),
    }
}

/// Keeps what is logged.
#[derive(Clone, Default)]
pub(crate) struct Log(Arc<Mutex<String>>);

impl Log {
    pub(crate) fn text(&self) -> String {
        self.0.lock().unwrap().clone()
    }
}

impl Subscriber for Log {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.target() == "outlast::storage"
    }

    fn new_span(&self, _: &Attributes<'_>) -> Id {
        Id::from_u64(1)
    }

    fn record(&self, _: &Id, _: &Record<'_>) {}

    fn record_follows_from(&self, _: &Id, _: &Id) {}

    fn event(&self, event: &Event<'_>) {
        event.record(&mut self.clone());
    }

    fn enter(&self, _: &Id) {}

    fn exit(&self, _: &Id) {}
}

impl Visit for Log {
    fn record_debug(&mut self, field: &Field, value: &dyn std::fmt::Debug) {
        self.0.lock().unwrap().push_str(&format!("{field}={value:?} "));
    }
}

#[tokio::test]
async fn a_clock_that_went_back_is_refused_until_it_has_caught_up() {
    let database = Database::new();
    let store = database.connect().await;
    join(&store, "node").await;
    shift(&database, -3600).await;
    let why = refusal(&database).await;
    assert!(why.contains("s behind what a node has written") && why.contains("set the clock"), "{why}");
    shift(&database, 0).await;
    database.connect().await;
    // A node that is alive writes its lease anew, and the clock is no danger any more.
    shift(&database, -3600).await;
    store.renew(&outlast_core::NodeId::new("node")).await.unwrap();
    database.connect().await;
    database.drop_schema().await;
}

#[tokio::test]
async fn a_clock_that_was_ahead_and_is_right_is_taken_after_what_the_refusal_advises() {
    let database = Database::new();
    let store = database.connect().await;
    shift(&database, 3600).await;
    join(&store, "dead").await;
    shift(&database, 0).await;
    let advice = format!("delete the rows of {}.nodes whose lease_until lies ahead", database.options.schema);
    let why = refusal(&database).await;
    assert!(why.contains(&advice), "{why}");
    database.execute("DELETE FROM nodes WHERE lease_until > now_ms()").await;
    database.connect().await;
    database.drop_schema().await;
}

#[tokio::test]
async fn a_standby_that_is_a_little_behind_and_a_backup_of_last_year_are_taken() {
    let database = Database::new();
    let store = database.connect().await;
    join(&store, "dead").await;
    shift(&database, -60).await;
    database.connect().await;
    shift(&database, 31_536_000).await;
    database.connect().await;
    database.drop_schema().await;
}

#[tokio::test]
async fn a_difference_to_the_machines_clock_is_told_and_not_refused() {
    let (log, database) = (Log::default(), Database::new());
    let _logging = tracing::subscriber::set_default(log.clone());
    database.connect().await;
    assert_eq!(*log.0.lock().unwrap(), "");
    for seconds in [60, -60] {
        shift(&database, seconds).await;
        log.0.lock().unwrap().clear();
        database.connect().await;
        let told = log.0.lock().unwrap().clone();
        assert!(told.contains("will not line up; synchronise both") && told.contains("seconds="), "{told}");
    }
    database.drop_schema().await;
}
