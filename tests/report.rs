//! Reports: every number arrives, nothing that a run wrote becomes markup, and the page is self-contained.

use std::collections::BTreeMap;
use std::path::Path;

use ctune_dist::Error;
use ctune_dist::report::compare::{at_size, rows};
use ctune_dist::report::html::escape;
use ctune_dist::report::metrics::{read, smooth, thin};
use ctune_dist::report::{Cell, Results, Training, table_text, write_experiment_report};

fn cell(arm: &str, train_topics: Option<usize>, all_topics: bool, values: &[(&str, &[f64])]) -> Cell {
    let mut cell = Cell { arm: arm.into(), train_topics, all_topics, ..Cell::default() };
    for (measure, values) in values {
        cell.means.insert((*measure).into(), values.iter().sum::<f64>() / values.len() as f64);
        let topics = values.iter().enumerate().map(|(i, &value)| (format!("{}", 301 + i), value));
        cell.per_topic.insert((*measure).into(), topics.collect());
    }
    cell
}

fn small() -> Results {
    Results {
        title: "Robust04 <title>".into(),
        measures: vec!["ndcg_cut_5".into(), "recip_rank".into()],
        baseline: "fine only".into(),
        cells: vec![
            cell(
                "BM25",
                None,
                false,
                &[("ndcg_cut_5", &[0.1, 0.2, 0.3, 0.4]), ("recip_rank", &[0.5, 0.5, 1.0, 0.25])],
            ),
            cell("fine only", Some(8), false, &[("ndcg_cut_5", &[0.1234; 4]), ("recip_rank", &[0.2345; 4])]),
            cell(
                "fine only",
                Some(200),
                true,
                &[("ndcg_cut_5", &[0.2, 0.4, 0.35, 0.55]), ("recip_rank", &[0.5, 0.5, 1.0, 0.25])],
            ),
            cell(
                "coarse, fine",
                Some(8),
                false,
                &[("ndcg_cut_5", &[0.3456; 4]), ("recip_rank", &[0.4567; 4])],
            ),
            cell(
                "coarse, fine",
                Some(200),
                true,
                &[("ndcg_cut_5", &[0.5, 0.71, 0.66, 0.84]), ("recip_rank", &[1.0, 0.5, 1.0, 0.5])],
            ),
        ],
        training: Vec::new(),
        facts: vec![("config.seed".into(), "1 & <more>".into())],
    }
}

#[test]
fn the_table_has_this_layout() {
    let text = table_text(&small()).unwrap();
    // p-values: scipy.stats.ttest_rel; markers: Holm over the two arms.
    let expected = "\
arm           topics  ndcg_cut_5  diff      p          recip_rank  diff      p
BM25          4       0.2500      -0.1250   0.0305*    0.5625      +0.0000   1.0000
fine only     4       0.3750      baseline  -          0.5625      baseline  -
coarse, fine  4       0.6775      +0.3025   <0.0001**  0.7500      +0.1875   0.2152
";
    let table: String = text.lines().take(4).map(|line| format!("{line}\n")).collect();
    assert_eq!(table, expected, "\n{table}");
    let legend = text.lines().nth(4).unwrap();
    for words in ["\"fine only\"", "two-sided paired t-test", "uncorrected", "Holm"] {
        assert!(legend.contains(words), "{legend}");
    }
}

/// The learning curve says where arms differ: against the baseline at the same number of topics.
#[test]
fn sizes_are_compared_with_the_baseline_at_that_size() {
    let mut results = small();
    let eight = |arm: &str, values: [f64; 4]| {
        cell(arm, Some(8), false, &[("ndcg_cut_5", &values), ("recip_rank", &[0.1, 0.2, 0.3, 0.4])])
    };
    results.cells[1] = eight("fine only", [0.1, 0.12, 0.11, 0.13]);
    results.cells[3] = eight("coarse, fine", [0.3, 0.33, 0.31, 0.36]);
    results.cells.push(eight("third", [0.11, 0.1, 0.12, 0.11]));
    let found = at_size(&results, 8, "ndcg_cut_5").unwrap();
    assert_eq!(found.keys().copied().collect::<Vec<_>>(), ["coarse, fine", "third"]);
    let (first, third) = (found["coarse, fine"], found["third"]);
    // differences .2 .21 .2 .23 and .01 -.02 .01 -.02, Student's t with 3 degrees of freedom in closed form;
    // Holm doubles the smaller p and leaves the other
    assert!((first.p - 8.384_904e-5).abs() < 1e-9 && (first.holm / first.p - 2.0).abs() < 1e-9, "{first:?}");
    assert!((third.p - 0.604_181).abs() < 1e-5 && third.holm == third.p, "{third:?}");
    assert!(at_size(&results, 16, "ndcg_cut_5").unwrap().is_empty());

    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("results.json"), serde_json::to_vec(&results).unwrap()).unwrap();
    let page = std::fs::read_to_string(write_experiment_report(folder.path()).unwrap()).unwrap();
    assert!(page.contains("<td>coarse, fine</td><td>0.3250**</td><td>0.6775**</td>"), "{page}");
    assert!(page.contains("<td>third</td><td>0.1100</td><td></td>"), "{page}");
}

#[test]
fn tests_use_the_topics_of_both_arms() {
    let mut results = small();
    let first = results.cells[0].per_topic.get_mut("ndcg_cut_5").unwrap();
    first.remove("304");
    first.insert("999".into(), 0.0);
    let rows = rows(&results).unwrap();
    let against = rows[0].entries[0].against.unwrap();
    assert_eq!((rows[0].topics, against.topics), (4, 3));
    assert!((against.difference - (-0.35 / 3.0)).abs() < 1e-12, "{}", against.difference);
    let page = page_of(&results);
    assert!(page.contains("BM25: only 3 of its 4 topics are topics of the baseline too."));
}

#[test]
fn contradictions_are_named() {
    let message = |change: fn(&mut Results)| {
        let mut results = small();
        change(&mut results);
        match table_text(&results) {
            Err(Error::Data(text)) => text,
            other => panic!("{other:?}"),
        }
    };
    assert!(message(|r| r.measures.clear()).contains("no measure"));
    assert!(message(|r| r.baseline = "fin".into()).contains("\"fin\""));
    assert!(message(|r| r.measures.push("map".into())).contains("map"));
    let disjoint = message(|r| {
        for topics in r.cells[0].per_topic.values_mut() {
            *topics = BTreeMap::from([("1".into(), 0.5)]);
        }
    });
    assert!(disjoint.contains("share no topic"), "{disjoint}");
}

/// The page of results in a temporary folder, with the training runs beside them.
fn page_in(dir: &Path, results: &Results) -> String {
    std::fs::write(dir.join("results.json"), serde_json::to_vec(results).unwrap()).unwrap();
    let path = write_experiment_report(dir).unwrap();
    assert_eq!(path, dir.join("report.html"));
    std::fs::read_to_string(path).unwrap()
}

fn page_of(results: &Results) -> String {
    page_in(tempfile::tempdir().unwrap().path(), results)
}

#[test]
fn every_number_is_on_the_page_and_nothing_is_markup() {
    let mut results = small();
    results.cells[4].arm = "<script>alert('x')</script>".into();
    results.cells[3].arm = results.cells[4].arm.clone();
    let page = page_of(&results);
    assert!(!page.contains("<script"), "markup of an arm's name reached the page");
    assert!(page.contains("&lt;script&gt;alert(&#39;x&#39;)&lt;/script&gt;"));
    assert!(page.contains("<title>Robust04 &lt;title&gt;</title>") && page.contains("1 &amp; &lt;more&gt;"));
    for cell in &results.cells {
        for mean in cell.means.values() {
            let shown = ["", "*", "**"].map(|marker| page.contains(&format!("<td>{mean:.4}{marker}</td>")));
            assert!(shown.contains(&true), "{mean:.4} is missing");
        }
    }
    for row in rows(&results).unwrap() {
        for against in row.entries.iter().filter_map(|entry| entry.against) {
            assert!(page.contains(&format!("<td>{:+.4}</td>", against.difference)));
        }
    }
    assert!(page.contains("two-sided paired t-test"));
    assert_eq!(page.matches("<svg").count(), 1, "one curve plot, no loss plots without training runs");
}

#[test]
fn the_page_needs_nothing_but_itself() {
    let page = page_of(&small());
    for reference in ["http:", "https:", "src=", "href=", "url(", "@import", "<link", "<script"] {
        assert!(!page.contains(reference), "{reference} in the page");
    }
}

#[test]
fn losses_are_drawn_from_torn_and_resumed_metrics() {
    let dir = tempfile::tempdir().unwrap();
    let mut lines: String = (1..=500)
        .map(|step| {
            format!("{{\"step\":{step},\"loss\":{},\"mlm_loss\":7.5,\"qdpp_loss\":0.0}}\n", 9.0 / step as f64)
        })
        .collect();
    // Killed while writing, then resumed from step 400; a validation line has no loss.
    lines += "{\"step\":501,\"lo{\"step\":401,\"loss\":1.25}\n{\"step\":402,\"validation\":0.5}\n";
    std::fs::write(dir.path().join("metrics.jsonl"), lines + "{\"step\":400,\"loss\":1.5}\n").unwrap();
    let curves = read("coarse", &dir.path().join("metrics.jsonl"));
    assert_eq!(curves.losses[0].len(), 500);
    assert_eq!(curves.losses[0][399], (400.0, 1.5));
    assert_eq!(
        (curves.losses[1].len(), curves.losses[2].len()),
        (500, 0),
        "a loss that is always 0 is no curve"
    );
    assert!(curves.note.unwrap().contains("1 unreadable line"));

    let mut results = small();
    results.training = vec![
        Training { name: "coarse <1>".into(), metrics: "metrics.jsonl".into() },
        Training { name: "gone".into(), metrics: "elsewhere/metrics.jsonl".into() },
    ];
    let page = page_in(dir.path(), &results);
    assert_eq!(page.matches("<svg").count(), 3, "curve, loss, mlm_loss");
    assert!(page.contains("coarse &lt;1&gt;") && !page.contains("coarse <1>"));
    assert!(page.contains("gone: ") && page.contains("cannot be read"));
}

#[test]
fn smoothing_is_a_weighted_mean_and_thinning_keeps_the_end() {
    let flat: Vec<_> = (0..300).map(|i| (f64::from(i), 2.5)).collect();
    assert!(smooth(&flat).iter().all(|&(_, value)| (value - 2.5).abs() < 1e-12));
    let noisy: Vec<_> = (0..300).map(|i| (f64::from(i), f64::from(i % 2))).collect();
    assert!(smooth(&noisy)[3..297].iter().all(|&(_, value)| (value - 0.5).abs() < 0.1));
    let line: Vec<_> = (0..300).map(|i| (f64::from(i), 3.0 * f64::from(i))).collect();
    assert!(smooth(&line).iter().all(|&(step, value)| (value - 3.0 * step).abs() < 1e-9), "it lags");
    for n in [1, 2, 99, 100, 101, 299, 300] {
        let thinned = thin(&noisy[..n], 100);
        assert!(thinned.len() <= 100 && thinned.len() >= n.min(50), "{n} -> {}", thinned.len());
        assert_eq!(thinned.last(), noisy[..n].last());
    }
    assert!(smooth(&[]).is_empty() && thin(&[], 100).is_empty());
}

#[test]
fn escapes() {
    assert_eq!(escape("a<b>&\"c'"), "a&lt;b&gt;&amp;&quot;c&#39;");
}
