//! All figures of a run as a Markdown table, with ratios to ours.

use std::fmt::Write;

use crate::measure::Figures;

pub(crate) fn render(rows: &[Figures]) -> String {
    let mut text = String::from(
        "| workload | peer | n | rate /s | ours over it | p50 ms | p99 ms | CPU s per 1,000 | fsync ms | W5 first, last 100 (ms per step) |\n\
         |---|---|---|---|---|---|---|---|---|---|\n",
    );
    for row in rows {
        let ours = rows.iter().find(|other| other.workload == row.workload && other.peer == crate::OURS);
        let ratio = ours.map_or_else(String::new, |ours| format!("{:.1}", ours.rate / row.rate));
        let steps = match (row.first_100_ms_per_step, row.last_100_ms_per_step) {
            (Some(first), Some(last)) => format!("{first:.2}, {last:.2}"),
            _ => String::new(),
        };
        // Writing into a String cannot fail.
        let _infallible = writeln!(
            text,
            "| {} | {} | {} | {:.0} | {ratio} | {:.2} | {:.2} | {:.3} | {:.2} | {steps} |",
            row.workload, row.peer, row.n, row.rate, row.p50_ms, row.p99_ms, row.cpu_s_per_1000, row.fsync_ms
        );
    }
    text
}
