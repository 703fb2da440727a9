//! The parts of every page. A page is one HTML file that needs nothing else: no script, no font, no request.

use std::fmt::Write;

const STYLE: &str = "
:root { color-scheme: light dark; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 64rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.6rem; } h2 { font-size: 1.2rem; margin-top: 2.5rem; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; margin: .8rem 0; }
th, td { padding: .25rem .8rem; border-bottom: 1px solid #8886; text-align: right; vertical-align: top; }
th:first-child, td:first-child { text-align: left; }
thead th { border-bottom: 2px solid #888c; }
table.facts td { text-align: left; overflow-wrap: anywhere; }
tr.baseline td { background: #8882; }
.scroll { overflow-x: auto; } .scroll td:first-child { white-space: nowrap; }
.note { opacity: .8; font-size: .9rem; }
figure { margin: 1rem 0; }
svg { max-width: 100%; height: auto; }
svg text { fill: currentColor; }
svg [stroke=\"#000000\"] { stroke: currentColor; }
";

/// `&`, `<`, `>` and both quotes as entities.
pub fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for letter in text.chars() {
        match letter {
            '&' => escaped += "&amp;",
            '<' => escaped += "&lt;",
            '>' => escaped += "&gt;",
            '"' => escaped += "&quot;",
            '\'' => escaped += "&#39;",
            other => escaped.push(other),
        }
    }
    escaped
}

/// A page around `body`; both are HTML already.
pub fn shell(title: &str, body: &str) -> String {
    format!(
        "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
         <title>{title}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n{body}</body>\n</html>\n"
    )
}

/// A table. Its cells are already HTML; each row has a class.
pub fn table(class: &str, head: &[String], rows: &[(&str, Vec<String>)]) -> String {
    let mut html = format!("<div class=\"scroll\"><table class=\"{class}\">\n");
    if !head.is_empty() {
        let _ = writeln!(html, "<thead><tr><th>{}</th></tr></thead>", head.join("</th><th>"));
    }
    html += "<tbody>\n";
    for (class, cells) in rows {
        let _ = writeln!(html, "<tr class=\"{class}\"><td>{}</td></tr>", cells.join("</td><td>"));
    }
    html + "</tbody></table></div>\n"
}

/// An SVG inside HTML needs no namespace, and its caption is its description.
pub fn figure(svg: &str, caption: &str) -> String {
    let caption = escape(caption);
    let opening = format!("<svg role=\"img\" aria-label=\"{caption}\" ");
    let inline = svg.replacen("<svg ", &opening, 1).replacen(" xmlns=\"http://www.w3.org/2000/svg\"", "", 1);
    format!("<figure>\n{inline}<figcaption class=\"note\">{caption}</figcaption>\n</figure>\n")
}
