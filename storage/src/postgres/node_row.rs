//! What a node serves, as text in its row: one line each, words apart by tabs. Names hold no control characters.

use outlast_core::{NodeId, TagFilter};

use crate::{NodeInfo, WorkerInfo};

const ORCHESTRATION: &str = "orchestration";
const ACTIVITY: &str = "activity";
const TAGS: &str = "tags";
/// What the text of a node that has an orchestration matches, as Postgres understands patterns.
pub(super) const RUNS_ORCHESTRATIONS: &str = r"(^|\n)orchestration\t";

pub(super) fn encode(node: &NodeInfo) -> String {
    let mut lines: Vec<String> =
        node.handlers.iter().map(|(name, version)| format!("{ORCHESTRATION}\t{name}\t{version}")).collect();
    if let Some(worker) = &node.worker {
        let (kind, tags) = match &worker.filter {
            TagFilter::DefaultOnly => ("default", None),
            TagFilter::Tags(tags) => ("some", Some(tags)),
            TagFilter::DefaultAnd(tags) => ("default-and", Some(tags)),
            TagFilter::Any => ("any", None),
            TagFilter::None => ("none", None),
        };
        let tags = tags.into_iter().flatten().map(|tag| format!("\t{tag}")).collect::<String>();
        lines.push(format!("{TAGS}\t{kind}{tags}"));
        lines.extend(worker.activities.iter().map(|name| format!("{ACTIVITY}\t{name}")));
    }
    lines.join("\n")
}

/// Lines of a newer program are passed over.
pub(super) fn decode(id: NodeId, text: &str) -> NodeInfo {
    let mut node = NodeInfo { id, handlers: Vec::new(), worker: None };
    for line in text.lines() {
        let words: Vec<&str> = line.split('\t').collect();
        match words[..] {
            [ORCHESTRATION, name, version] => node.handlers.push((name.to_owned(), version.to_owned())),
            [TAGS, kind, ref tags @ ..] => {
                let filter = filter(kind, tags);
                node.worker = filter.map(|filter| WorkerInfo { filter, activities: Vec::new() });
            }
            [ACTIVITY, name] => node.worker.iter_mut().for_each(|worker| worker.activities.push(name.to_owned())),
            _ => {}
        }
    }
    node
}

fn filter(kind: &str, tags: &[&str]) -> Option<TagFilter> {
    let tags = tags.iter().map(|tag| (*tag).to_owned()).collect();
    match kind {
        "default" => Some(TagFilter::DefaultOnly),
        "some" => Some(TagFilter::Tags(tags)),
        "default-and" => Some(TagFilter::DefaultAnd(tags)),
        "any" => Some(TagFilter::Any),
        "none" => Some(TagFilter::None),
        _ => None,
    }
}
