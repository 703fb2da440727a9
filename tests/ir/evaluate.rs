//! `evaluate` end to end: trec_eval's layout, the comparison with a baseline, the table, JSON and plots.

use ctune_dist::ir::compare::DRAWS;
use ctune_dist::ir::evaluate::{EvaluateOptions, measure};
use ctune_dist::report::evaluate::{OutputFormat, render, run};
use serde_json::Value;

use super::*;

const QRELS: &str = "1 0 a 1\n1 0 b 0\n2 0 a 1\n3 0 c 1\n";
const RUN: &str = "1 Q0 a 1 2 mine\n1 Q0 b 2 1 mine\n2 Q0 b 1 2 mine\n2 Q0 a 2 1 mine\n";
const BASELINE: &str = "1 Q0 b 1 2 old\n1 Q0 a 2 1 old\n2 Q0 b 1 2 old\n2 Q0 a 2 1 old\n";

/// Options over files in a folder, with these measures.
fn options(folder: &tempfile::TempDir, measures: &[&str]) -> EvaluateOptions {
    EvaluateOptions {
        qrels: file(folder, "qrels", QRELS),
        run: file(folder, "run", RUN),
        measures: measures.iter().map(|name| (*name).to_owned()).collect(),
        ..EvaluateOptions::default()
    }
}

fn against(folder: &tempfile::TempDir, measures: &[&str]) -> EvaluateOptions {
    EvaluateOptions { baseline: Some(file(folder, "baseline", BASELINE)), ..options(folder, measures) }
}

fn rendered(o: &EvaluateOptions, form: OutputFormat) -> String {
    render(o, &measure(o).unwrap(), form).unwrap()
}

#[test]
fn the_layout_is_trec_evals() {
    let folder = folder();
    let text = rendered(&options(&folder, &["map", "num_ret"]), OutputFormat::Trec);
    assert_eq!(text, "num_ret               \tall\t4\nmap                   \tall\t0.7500\n");
    let mut o = options(&folder, &["map", "gm_map", "num_q", "relstring", "P.2,1", "P"]);
    (o.per_topic, o.how.complete) = (true, true);
    let wanted = "\
map                   \t1\t1.0000
P_1                   \t1\t1.0000
P_2                   \t1\t0.5000
relstring             \t1\t'10'
map                   \t2\t0.5000
P_1                   \t2\t0.0000
P_2                   \t2\t0.5000
relstring             \t2\t'-1'
map                   \t3\t0.0000
P_1                   \t3\t0.0000
P_2                   \t3\t0.0000
relstring             \t3\t''
";
    let summary = "num_q                 \tall\t3\nmap                   \tall\t0.5000\n\
                   gm_map                \tall\t0.0171\nP_1                   \tall\t0.3333\n\
                   P_2                   \tall\t0.3333\n";
    assert_eq!(rendered(&o, OutputFormat::Trec), format!("{wanted}{summary}"));
    o.no_summary = true;
    assert_eq!(rendered(&o, OutputFormat::Trec), wanted);
    let official = rendered(&options(&folder, &[]), OutputFormat::Trec);
    assert_eq!(official.lines().next(), Some("runid                 \tall\tmine"));
}

#[test]
fn a_baseline_is_compared_topic_by_topic() {
    let folder = folder();
    let o = against(&folder, &["map", "num_q", "recip_rank"]);
    let text = rendered(&o, OutputFormat::Trec);
    let rows = text.lines().filter(|line| line.ends_with("1/1/0")).collect::<Vec<_>>();
    assert_eq!(rows.len(), 2, "{text}");
    // Differences .5 and 0: t = 1, p = .5 with one degree of freedom; Holm doubles it.
    let first = "map                   \t0.7500\t0.5000\t+0.2500\t0.5000\t1.0000\t";
    assert!(rows[0].starts_with(first), "{text}");
    let only_counts = measure(&against(&folder, &["num_ret"])).err().unwrap();
    assert!(only_counts.exit_code() == 2 && only_counts.to_string().contains("-m"), "{only_counts}");
}

#[test]
fn the_table_is_aligned() {
    let folder = folder();
    let mut o = against(&folder, &["map", "num_ret"]);
    let text = rendered(&o, OutputFormat::Table);
    assert!(
        text.starts_with("measure  mine\nnum_ret  4\nmap      0.7500\n\nmeasure  run     baseline  diff"),
        "{text}"
    );
    o.per_topic = true;
    let text = rendered(&o, OutputFormat::Table);
    let wanted =
        "topic  num_ret  map\n1      2        1.0000\n2      2        0.5000\nall    4        0.7500\n\n";
    assert!(text.starts_with(wanted), "{text}");
}

/// The fields that README documents, with the values that the layout prints.
#[test]
fn json_has_means_topics_and_the_comparison() {
    let folder = folder();
    let plain: Value = serde_json::from_str(&rendered(&options(&folder, &[]), OutputFormat::Json)).unwrap();
    assert!(plain.get("comparison").is_none() && plain["measures"].as_array().unwrap().len() == 29);
    let mut o = against(&folder, &["map", "num_ret", "gm_map", "relstring"]);
    o.seed = 3;
    let found: Value = serde_json::from_str(&rendered(&o, OutputFormat::Json)).unwrap();
    let expected = serde_json::json!({
        "version": 1,
        "qrels": o.qrels,
        "run": { "path": o.run, "tag": "mine" },
        "options": { "complete": false, "level": 1, "judged_only": false, "depth": null, "f64_scores": false },
        "topics": 2, "missing_topics": 1, "unjudged_topics": 0,
        "measures": ["num_ret", "map", "gm_map"],
        "means": { "num_ret": 4.0, "map": 0.75, "gm_map": found["means"]["gm_map"] },
        "per_topic": { "1": { "num_ret": 2.0, "map": 1.0 }, "2": { "num_ret": 2.0, "map": 0.5 } },
        "comparison": {
            "baseline": { "path": o.baseline, "tag": "old" },
            "topics": 2, "left_out_topics": 0, "draws": DRAWS, "seed": 3,
            "measures": { "map": {
                "run": 0.75, "baseline": 0.5, "difference": 0.25, "t": 1.0, "degrees_of_freedom": 1,
                "p": found["comparison"]["measures"]["map"]["p"],
                "p_holm": found["comparison"]["measures"]["map"]["p"],
                "p_randomisation": 1.0, "low": 0.0, "high": 0.5, "wins": 1, "ties": 1, "losses": 0
            } },
            "differences": { "1": { "map": 0.5 }, "2": { "map": 0.0 } }
        }
    });
    assert_eq!(found, expected);
    assert!((found["means"]["gm_map"].as_f64().unwrap() - 0.5_f64.sqrt()).abs() < 1e-12);
    assert!((found["comparison"]["measures"]["map"]["p"].as_f64().unwrap() - 0.5).abs() < 1e-9);
}

/// Bars stand in the order of the differences, a label under each.
#[test]
fn differences_are_drawn() {
    let folder = folder();
    let (mut qrels, mut ours, mut theirs) = (String::new(), String::new(), String::new());
    for topic in 0..40 {
        qrels += &format!("t{topic} 0 a 1\n");
        let place = topic % 4;
        let mut list = ["x", "y", "z", "w"];
        list[place] = "a";
        for (rank, doc) in list.iter().enumerate() {
            ours += &format!("t{topic} Q0 {doc} 0 {} ours\n", 9 - rank);
        }
        theirs += &format!("t{topic} Q0 x 0 2 theirs\nt{topic} Q0 a 0 1 theirs\n");
    }
    let o = EvaluateOptions {
        qrels: file(&folder, "q", &qrels),
        run: file(&folder, "r", &ours),
        baseline: Some(file(&folder, "b", &theirs)),
        measures: vec!["recip_rank".into(), "success.1".into()],
        ..EvaluateOptions::default()
    };
    let svg = folder.path().join("plot.svg");
    run(&o, OutputFormat::Trec, Some(&svg)).unwrap();
    let text = std::fs::read_to_string(&svg).unwrap();
    assert!(text.starts_with("<svg") && text.contains("http://www.w3.org/2000/svg"));
    assert!(text.contains("recip_rank: +0.0208, p ") && text.contains("10 won, 10 tied, 20 lost"), "{text}");
    assert_eq!(text.matches("t39").count(), 2, "a label a bar and panel");
    let heights: Vec<f64> = text
        .lines()
        .filter(|line| line.contains("<rect") && line.contains("#0072B2"))
        .filter_map(|line| line.split("height=\"").nth(1)?.split('"').next()?.parse().ok())
        .collect();
    assert!(heights.len() >= 20, "{heights:?}");
    let page = folder.path().join("plot.html");
    run(&o, OutputFormat::Trec, Some(&page)).unwrap();
    let text = std::fs::read_to_string(&page).unwrap();
    assert_eq!(text.matches("<svg").count(), 2);
    assert!(text.contains("10/10/20") && text.contains("recip_rank") && !text.contains("http"));
}

/// Of many topics only the ends of the order are named.
#[test]
fn many_topics_fit_into_a_plot() {
    let folder = folder();
    let topics = 0..500;
    let qrels: String = topics.clone().map(|t| format!("{t} 0 a 1\n")).collect();
    let run_of = |good: fn(usize) -> bool| -> String {
        topics.clone().map(|t| format!("{t} Q0 {} 0 1 x\n", if good(t) { "a" } else { "b" })).collect()
    };
    let o = EvaluateOptions {
        qrels: file(&folder, "q", qrels),
        run: file(&folder, "r", run_of(|t| t < 400)),
        baseline: Some(file(&folder, "b", run_of(|t| t > 50))),
        ..EvaluateOptions::default()
    };
    let svg = folder.path().join("plot.svg");
    run(&o, OutputFormat::Trec, Some(&svg)).unwrap();
    let text = std::fs::read_to_string(&svg).unwrap();
    assert!(text.contains("first: 0 +1.000, 1 +1.000, 10 +1.000"), "the default measures draw map alone");
    assert!(text.contains("499 -1.000") && !text.contains("300 "), "ends of the order");
}

#[test]
fn plots_that_cannot_be_are_refused_first() {
    let folder = folder();
    let plot = |o: &EvaluateOptions, name: &str| {
        let error = run(o, OutputFormat::Trec, Some(&folder.path().join(name))).unwrap_err();
        assert_eq!(error.exit_code(), 2, "{error}");
        error.to_string()
    };
    assert!(plot(&options(&folder, &["map"]), "p.svg").contains("--baseline"));
    assert!(plot(&against(&folder, &["map"]), "p.png").contains(".svg or .html"));
    assert!(plot(&against(&folder, &["P", "recall"]), "p.svg").contains("18 are named"));
}
