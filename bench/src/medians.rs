//! Several runs of the same as one: the median of every figure.

use serde_json::{Map, Value};

use crate::measured::Row;

/// Rows of the same peer and workload become one, in the order in which they first appear.
pub(crate) fn medians(rows: &[Row]) -> anyhow::Result<Vec<Row>> {
    let mut grouped: Vec<(&str, &str, Vec<Value>)> = Vec::new();
    for row in rows {
        let value = serde_json::to_value(row)?;
        match grouped.iter_mut().find(|(peer, workload, _)| *peer == row.peer && *workload == row.workload) {
            Some((_, _, values)) => values.push(value),
            None => grouped.push((&row.peer, &row.workload, vec![value])),
        }
    }
    grouped.into_iter().map(|(_, _, values)| Ok(serde_json::from_value(median(&values))?)).collect()
}

fn median(values: &[Value]) -> Value {
    let first = &values[0];
    match first {
        Value::Object(fields) => {
            let of = |name: &String| values.iter().filter_map(|value| value.get(name).cloned()).collect::<Vec<_>>();
            Value::Object(fields.keys().map(|name| (name.clone(), median(&of(name)))).collect::<Map<_, _>>())
        }
        // Whole numbers are sizes, the same in all runs.
        Value::Number(number) if number.is_f64() => {
            let mut numbers: Vec<f64> = values.iter().filter_map(Value::as_f64).collect();
            numbers.sort_by(f64::total_cmp);
            let middle = numbers.len() / 2;
            let lower = if numbers.len().is_multiple_of(2) { middle - 1 } else { middle };
            Value::from((numbers[lower] + numbers[middle]) / 2.0)
        }
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) | Value::Array(_) => first.clone(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_figure_has_a_median_of_its_own_and_sizes_stay() {
        let row = |rate, p50_ms, cpu| {
            let mut row = Row { peer: "a".to_owned(), workload: "w1".to_owned(), ..Row::default() };
            (row.figures.n, row.figures.rate, row.figures.p50_ms) = (7, rate, p50_ms);
            row.costs.cpu_s_per_1000_of.insert("client".to_owned(), cpu);
            row
        };
        let other = Row { peer: "b".to_owned(), ..Row::default() };
        let rows = medians(&[row(1.0, 9.0, 4.0), other, row(3.0, 5.0, 1.0), row(2.0, 7.0, 2.0)]).unwrap();
        assert_eq!(rows.iter().map(|row| row.peer.as_str()).collect::<Vec<_>>(), ["a", "b"]);
        let (figures, costs) = (&rows[0].figures, &rows[0].costs);
        assert_eq!((figures.n, figures.rate, figures.p50_ms, costs.cpu_s_per_1000_of["client"]), (7, 2.0, 7.0, 2.0));
        assert!(figures.first_100_ms_per_step.is_none() && costs.postgres.is_none());
    }
}
