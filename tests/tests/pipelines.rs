//! The pipelines of `examples/repo-layout`, step by step as a runner would run them:
//! the shell steps are taken out of the files, and the forge is a small server here.

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::{Arc, Mutex, PoisonError};

use serde_json::{Value, json};
use strata_tests::git::{commit_all, git, init};
use strata_tests::{Workspace, finish, program, source_tree::repository_root};
use yaml_rust2::{Yaml, YamlLoader};

const TOKEN: &str = "a-token-for-this-test";

/// What a forge keeps of one pull request.
#[derive(Default)]
struct Kept {
    inventory: Vec<u8>,
    comments: BTreeMap<u64, String>,
    /// Methods and paths of the requests that changed something.
    changes: Vec<String>,
    /// Requests for the API that did not show the token.
    strangers: Vec<String>,
}

/// Serves the inventory and the comments of one pull request until the test ends.
struct Forge {
    address: String,
    kept: Arc<Mutex<Kept>>,
}

impl Forge {
    fn start(inventory: Vec<u8>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = format!("http://{}", listener.local_addr().expect("bound"));
        let kept = Arc::new(Mutex::new(Kept { inventory, ..Kept::default() }));
        let shared = kept.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                answer(stream, &mut shared.lock().unwrap_or_else(PoisonError::into_inner));
            }
        });
        Forge { address, kept }
    }

    fn kept<T>(&self, look: impl FnOnce(&mut Kept) -> T) -> T {
        look(&mut self.kept.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

fn answer(mut stream: TcpStream, kept: &mut Kept) {
    let mut reader = BufReader::new(stream.try_clone().expect("a second handle"));
    let (mut request, mut length, mut known) = (String::new(), 0, false);
    reader.read_line(&mut request).expect("a request line");
    loop {
        let mut line = String::new();
        reader.read_line(&mut line).expect("a header");
        let line = line.trim().to_ascii_lowercase();
        known |= line.ends_with(TOKEN);
        match line.split_once(": ") {
            Some(("content-length", value)) => length = value.parse().expect("a number"),
            _ if line.is_empty() => break,
            _ => {}
        }
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body).expect("the body");
    let mut words = request.split(' ');
    let (method, path) = (words.next().expect("a method"), words.next().expect("a path"));
    let content = if path == "/inventory" {
        kept.inventory.clone()
    } else {
        if !known {
            kept.strangers.push(request.clone());
        }
        change(kept, method, path, &body)
    };
    let head = format!(
        "HTTP/1.1 200 OK\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
        content.len()
    );
    stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(&content)).expect("sent");
}

fn change(kept: &mut Kept, method: &str, path: &str, body: &[u8]) -> Vec<u8> {
    if method == "GET" {
        let list: Vec<_> =
            kept.comments.iter().map(|(id, body)| json!({ "id": id, "body": body })).collect();
        return serde_json::to_vec(&list).expect("JSON");
    }
    kept.changes.push(format!("{method} {path}"));
    let body: Value = serde_json::from_slice(body).expect("JSON");
    let id = match method {
        "POST" => kept.comments.last_key_value().map_or(7, |(id, _)| id + 1),
        _ => path.rsplit('/').next().and_then(|id| id.parse().ok()).expect("an id"),
    };
    kept.comments.insert(id, body["body"].as_str().expect("a text").to_owned());
    b"{}".to_vec()
}

/// A checkout of a pull request that bumps the library of the template `web`.
struct PullRequest {
    workspace: Workspace,
    forge: Forge,
    base: String,
}

impl PullRequest {
    fn new(name: &str) -> Self {
        let workspace = Workspace::new(name);
        workspace.init_store();
        workspace.build_layer("main", "lib", "1", &[("usr/lib/x", "1")], &[]);
        workspace.build_layer("main", "lib", "2", &[("usr/lib/x", "2")], &[]);
        let fleet = workspace.write(
            "fleet",
            &[
                ("strata.toml", "[[repository]]\nname = \"main\"\n"),
                ("templates/web.ldf", "main/lib 1\n"),
            ],
        );
        let base = init(&fleet);
        let reconcile = ["reconcile", "--once", "--source"];
        finish(workspace.strata().args(reconcile).arg(&fleet)).ok();
        for va in ["w1", "w2"] {
            finish(workspace.strata().args(["va", "provision", "--template", "web", va])).ok();
        }
        let file = workspace.path("inventory.json.zst");
        finish(workspace.strata().args(["inventory", "export", "--file"]).arg(&file)).ok();
        git(&fleet, &["checkout", "-q", "-b", "bump"]);
        workspace.write("fleet", &[("templates/web.ldf", "main/lib 2\n")]);
        commit_all(&fleet, "bump");
        let forge = Forge::start(fs::read(file).expect("exported"));
        PullRequest { workspace, forge, base }
    }

    fn fleet(&self) -> PathBuf {
        self.workspace.path("fleet")
    }

    /// Runs a script with nothing in its environment but what a runner gives.
    fn run(&self, shell: &[&str], script: &str, environment: &[(String, String)]) -> Output {
        let file = self.workspace.path("step.sh");
        fs::write(&file, script).expect("written");
        let programs = program("strata");
        let programs = programs.parent().expect("a directory").display().to_string();
        let path = format!("{programs}:/usr/local/bin:/usr/bin:/bin");
        let mut command = Command::new(shell[0]);
        command.args(&shell[1..]).arg(file).current_dir(self.fleet()).env_clear();
        command.env("PATH", path).env("HOME", self.workspace.path(""));
        command.envs(environment.iter().cloned()).output().expect("a shell")
    }
}

fn pipeline(path: &str) -> Yaml {
    let text = fs::read_to_string(repository_root().join("examples/repo-layout").join(path));
    let mut documents = YamlLoader::load_from_str(&text.expect("the pipeline")).expect("YAML");
    documents.remove(0)
}

/// An expression `${{ … }}` as the forge would fill it in.
fn filled(text: &str, context: &BTreeMap<&str, String>) -> String {
    let mut filled = String::new();
    let mut rest = text;
    while let Some((before, after)) = rest.split_once("${{") {
        let (expression, behind) = after.split_once("}}").expect("an expression that ends");
        filled.push_str(before);
        let value = context.get(expression.trim());
        filled.push_str(value.unwrap_or_else(|| panic!("{expression} is unknown to this test")));
        rest = behind;
    }
    filled + rest
}

/// Runs the steps of a workflow in GitHub's format. Returns the failed ones.
fn workflow(request: &PullRequest, path: &str) -> Vec<String> {
    let address = &request.forge.address;
    let context = BTreeMap::from([
        ("vars.STRATA_INVENTORY_URL", format!("{address}/inventory")),
        ("github.event.pull_request.base.sha", request.base.clone()),
        ("github.event.pull_request.number", "42".to_owned()),
        ("github.token", TOKEN.to_owned()),
    ]);
    let temporary = request.workspace.write("runner", &[]).display().to_string();
    let summary = request.workspace.path("runner/summary").display().to_string();
    let given = [
        ("RUNNER_TEMP", temporary),
        ("GITHUB_STEP_SUMMARY", summary),
        ("GITHUB_API_URL", format!("{address}/api")),
        ("GITHUB_REPOSITORY", "ops/fleet".to_owned()),
    ];
    let document = pipeline(path);
    // Without `shell: bash` a runner does not look at what is before a pipe.
    let shell: &[&str] = match document["defaults"]["run"]["shell"].as_str() {
        Some("bash") => &["bash", "--noprofile", "--norc", "-eo", "pipefail"],
        _ => &["bash", "-e"],
    };
    let steps = document["jobs"]["plan"]["steps"].as_vec().expect("steps");
    let mut failed = Vec::new();
    for step in steps.iter().filter(|step| !step["run"].is_badvalue()) {
        let name = step["name"].as_str().expect("a name");
        if !failed.is_empty() && step["if"].as_str() != Some("${{ !cancelled() }}") {
            continue;
        }
        let mut environment: Vec<_> =
            given.iter().map(|(key, value)| ((*key).to_owned(), value.clone())).collect();
        for (key, value) in step["env"].as_hash().into_iter().flatten() {
            let (key, value) = (key.as_str().expect("a key"), value.as_str().expect("a text"));
            environment.push((key.to_owned(), filled(value, &context)));
        }
        let output = request.run(shell, step["run"].as_str().expect("a script"), &environment);
        eprintln!("{name}: {output:?}");
        if !output.status.success() {
            failed.push(name.to_owned());
        }
    }
    failed
}

/// Runs the job of a `.gitlab-ci.yml`; whether it passed.
fn gitlab(request: &PullRequest) -> bool {
    let job = &pipeline(".gitlab-ci.yml")["plan"];
    let lines = job["script"].as_vec().expect("a script").iter();
    let script: Vec<_> = lines.map(|line| line.as_str().expect("a text")).collect();
    let script = format!("set -eo pipefail\n{}\n", script.join("\n"));
    let address = &request.forge.address;
    let given = [
        ("STRATA_INVENTORY_URL", format!("{address}/inventory")),
        ("STRATA_NOTE_TOKEN", TOKEN.to_owned()),
        ("CI_MERGE_REQUEST_DIFF_BASE_SHA", request.base.clone()),
        ("CI_API_V4_URL", format!("{address}/api/v4")),
        ("CI_PROJECT_ID", "5".to_owned()),
        ("CI_MERGE_REQUEST_IID", "42".to_owned()),
        ("TMPDIR", request.workspace.path("").display().to_string()),
    ];
    let given: Vec<_> = given.map(|(key, value)| (key.to_owned(), value)).into();
    let output = request.run(&["bash"], &script, &given);
    eprintln!("{output:?}");
    output.status.success()
}

/// A good bump gets its comment; a further push replaces it; a bad one fails and is
/// told all the same.
fn tell(request: &PullRequest, run: impl Fn(&PullRequest) -> bool, paths: [&str; 2]) {
    assert!(run(request), "the bump can be taken");
    let comment = request.forge.kept(|kept| kept.comments[&7].clone());
    for words in ["<!-- strata plan -->", "1 upgraded", "**Blast radius:** 2 of 2 VAs"] {
        assert!(comment.contains(words), "{words:?} in {comment}");
    }
    let fleet = request.workspace.write("fleet", &[("templates/web.ldf", "main/lib 3\n")]);
    commit_all(&fleet, "worse");
    assert!(!run(request), "there is no lib 3");
    let kept = request.forge.kept(std::mem::take);
    assert!(kept.comments[&7].contains("refused: 1 error"), "{:?}", kept.comments);
    assert_eq!((kept.changes, kept.comments.len()), (paths.map(str::to_owned).into(), 1));
    assert_eq!(kept.strangers, [""; 0]);
}

#[test]
fn github_and_forgejo() {
    for path in [".github/workflows/strata.yml", ".forgejo/workflows/strata.yml"] {
        let request = PullRequest::new("pipeline");
        let run = |request: &PullRequest| workflow(request, path).is_empty();
        let paths = [
            "POST /api/repos/ops/fleet/issues/42/comments",
            "PATCH /api/repos/ops/fleet/issues/comments/7",
        ];
        tell(&request, run, paths);
        request.workspace.finish();
    }
}

#[test]
fn gitlab_notes() {
    let request = PullRequest::new("gitlab");
    let notes = "/api/v4/projects/5/merge_requests/42/notes";
    let paths = [format!("POST {notes}"), format!("PUT {notes}/7")];
    tell(&request, gitlab, [&paths[0], &paths[1]]);
    request.workspace.finish();
}

#[test]
fn a_plan_that_fails_behind_a_pipe_is_seen() {
    let request = PullRequest::new("behind-a-pipe");
    let fleet = request.workspace.write("fleet", &[("templates/web.ldf", "main/lib 3\n")]);
    commit_all(&fleet, "worse");
    let failed = workflow(&request, ".github/workflows/strata.yml");
    assert_eq!(failed, ["Check", "Plan"], "and the comment is made all the same");
    assert!(Path::new(&request.workspace.path("runner/summary")).exists());
    request.workspace.finish();
}
