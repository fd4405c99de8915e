//! All figures as a Markdown table, with ratios to ours of the same group.

use std::fmt::Write;

use clap::ValueEnum;

use crate::measured::Row;
use crate::peers::Peer;

const HEAD: &str = "\
| workload | peer | n | rate /s | ours over it | p50 ms | p99 ms | CPU s per 1,000 | commits | WAL syncs | WAL bytes | rows | fsync ms | load | |
|---|---|---|---|---|---|---|---|---|---|---|---|---|---|---|
";

/// Commits, WAL and rows are those of one step.
pub(crate) fn render(rows: &[Row]) -> String {
    let mut text = String::from(HEAD);
    for row in rows {
        let (figures, costs) = (&row.figures, &row.costs);
        let ratio = ours(rows, row).map(|ours| format!("{:.2}", ours.figures.rate / figures.rate));
        // The rate of W6 is mostly its timer.
        let ratio = ratio.filter(|_| figures.from_start_p50_ms.is_none()).unwrap_or_default();
        let postgres = costs.postgres.as_ref().map_or_else(
            || "| | |".to_owned(),
            |of| {
                format!(
                    "{:.3} | {:.3} | {:.0} | {:.2}",
                    of.commits_per_step, of.wal_syncs_per_step, of.wal_bytes_per_step, of.rows_written_per_step
                )
            },
        );
        // Writing into a String cannot fail.
        let _infallible = writeln!(
            text,
            "| {} | {} | {} | {:.0} | {ratio} | {:.2} | {:.2} | {:.3} | {postgres} | {:.2} | {:.1} | {} |",
            row.workload,
            row.peer,
            figures.n,
            figures.rate,
            figures.p50_ms,
            figures.p99_ms,
            costs.cpu_s_per_1000,
            costs.fsync_ms,
            costs.load,
            remarks(row)
        );
    }
    text
}

fn ours<'a>(rows: &'a [Row], row: &Row) -> Option<&'a Row> {
    let group = peer(row)?.group();
    let is_ours = |other: &&Row| peer(other).is_some_and(|peer| peer.is_ours() && peer.group() == group);
    rows.iter().filter(|other| other.workload == row.workload).find(is_ours)
}

fn peer(row: &Row) -> Option<Peer> {
    Peer::value_variants().iter().copied().find(|peer| peer.name() == row.peer)
}

fn remarks(row: &Row) -> String {
    let figures = &row.figures;
    let steps = figures.first_100_ms_per_step.zip(figures.last_100_ms_per_step);
    let from_start = figures.from_start_p50_ms.zip(figures.from_start_p99_ms);
    let steps = steps.map(|(first, last)| format!("first 100 {first:.2}, last 100 {last:.2} ms per step"));
    let from_start = from_start.map(|(p50, p99)| format!("from the start call {p50:.0}, {p99:.0} ms"));
    steps.or(from_start).unwrap_or_default()
}
