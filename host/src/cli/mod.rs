//! The command line, one file per subcommand. Data goes to stdout, everything else to stderr.

mod audio;
mod auto;
mod changes;
mod check;
mod client;
mod completions;
mod daemon;
mod docs;
mod doctor;
mod drain;
mod failure;
mod generated;
mod handover;
mod heap;
mod hosting;
mod image;
mod init;
mod logs;
mod migrate;
mod models;
mod out;
mod plugin_watch;
mod plugins;
mod ps;
mod reap;
mod reload;
mod run;
mod serve;
mod service;
mod signals;
mod sse;
mod supervisor;
mod table;
mod template;
mod top;
mod vet;
mod watchdog;
mod wheels;
mod why;

use std::ffi::OsString;
use std::future::Future;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{CommandFactory, Parser, Subcommand};

use self::failure::CliError;
use crate::config::{Config, Contact, Env, Selection};
use crate::device;

/// What the shell is told, and what it means.
const EXIT_CODES: [(u8, &str); 6] = [
    (0, "done"),
    (1, "failed"),
    (2, "wrong usage"),
    (3, "models.yaml is missing or wrong"),
    (4, "the server cannot be reached, or does not answer"),
    (130, "interrupted"),
];

/// Serves many generative models from one GPU machine behind one OpenAI-compatible port.
#[derive(Debug, Parser)]
#[command(name = "aihost", version, after_help = exit_codes())]
struct Arguments {
    /// The models.yaml to use. Without it: AIHOST_CONFIG, ./models.yaml, /workspace/models.yaml, then the user's configuration folder.
    #[arg(long, global = true, value_name = "FILE")]
    config: Option<PathBuf>,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Write an example models.yaml to start from.
    Init(init::Arguments),
    /// Write a models.yaml from what another host has: llama-swap, Ollama, LM Studio, or a folder of GGUF files.
    Migrate(migrate::Arguments),
    /// Validate models.yaml and print how requests are routed.
    Check(check::Arguments),
    /// Look for what would keep this machine from serving, or make it slow, and say what to do.
    Doctor(doctor::Arguments),
    /// Serve the models of models.yaml.
    Serve(serve::Arguments),
    /// Serve in the background, and wait until the server answers.
    Up(daemon::UpArguments),
    /// End the server that runs in the background or under a supervisor, once its requests have ended.
    Down(daemon::DownArguments),
    /// Have another process take the running server's place, without refusing a connection.
    Restart(daemon::RestartArguments),
    /// Say in one line which server runs, and what it does.
    Status(daemon::StatusArguments),
    /// Run the server under systemd.
    Service(service::Arguments),
    /// Make a machine ready to be saved as a template.
    Template(template::Arguments),
    /// Show where each model of a running server stands, and how full its devices are.
    Ps(client::Listing),
    /// Watch a running server: devices, models, who waits, what came and left, the last requests.
    Top(top::Arguments),
    /// Say what a request for a model would meet now: whether it is hot, what it needs, and who would leave for it.
    Why(why::Arguments),
    /// Print what a model's workers and its plugin logged, those that died among them.
    Logs(logs::Arguments),
    /// Ask a model: a chat with a text model, a file from an audio or image model.
    Run(run::Arguments),
    /// List, add, fetch, load, park, unload and remove models.
    Models(models::Arguments),
    /// Show what plugins there are and what options they take; begin one, and try it.
    Plugins(plugins::Arguments),
    /// Print what a shell needs to complete these commands: `source <(aihost completions bash)`.
    Completions(completions::Arguments),
    /// Print a page of the documentation that is written from the code.
    #[command(hide = true, name = "generated-page")]
    Docs(docs::Arguments),
    /// Put all of some wheels of the package index into a folder.
    #[command(hide = true)]
    Wheels(wheels::Arguments),
    /// Run a command of this program as the first process of a container does.
    #[command(hide = true)]
    Reap {
        #[arg(hide = true, trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<OsString>,
    },
    /// End what workers leave behind; started by the host.
    #[command(hide = true)]
    Guard {
        /// How the marks of its workers begin.
        #[arg(hide = true)]
        host: String,
    },
    /// Have a plugin say what options it takes; started by other commands.
    #[command(hide = true)]
    Describe,
    /// Hold one instance; started by the host.
    #[command(hide = true)]
    Worker {
        #[arg(hide = true, trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<OsString>,
    },
}

/// What every command is given.
#[derive(Debug)]
struct CommandContext {
    env: Env,
    config: Option<PathBuf>,
}

impl CommandContext {
    /// The checked configuration, with what the host is to choose chosen as far as it can be now.
    fn load(&self) -> Result<Config, CliError> {
        let mut config = self.load_listening(None)?;
        auto::choose_all(&mut config, &self.env, &auto::Looks::default());
        Ok(config)
    }

    /// Where the configuration's server is, whatever else is wrong in it.
    fn contact(&self) -> Result<Contact, CliError> {
        Ok(Contact::find(&Selection { file: self.config.clone(), listen: None }, &self.env)?)
    }

    /// The checked configuration, listening elsewhere than it says.
    fn load_listening(&self, listen: Option<String>) -> Result<Config, CliError> {
        let selection = Selection { file: self.config.clone(), listen };
        Ok(crate::config::load(&selection, &self.env)?)
    }
}

/// Parses the arguments, runs the command, and says how it went.
pub fn main() -> ExitCode {
    let arguments = match Arguments::try_parse() {
        Ok(arguments) => arguments,
        Err(error) => return serve::refuse_arguments(&error),
    };
    let env = Env::process().finding_devices(crate::device::present);
    crate::device::see_gpus(env.visible_gpus());
    crate::plugin::search_libraries(env.library_path());
    let context = CommandContext { env, config: arguments.config };
    let result = match arguments.command {
        Command::Serve(_) if reap::is_first() => return reaping(std::env::args_os().skip(1)),
        Command::Plugins(arguments) if arguments.serves() && reap::is_first() => {
            return reaping(std::env::args_os().skip(1));
        }
        Command::Reap { arguments } => return reaping(arguments.into_iter()),
        // The child side of a worker, which must not have the threads of a runtime.
        Command::Worker { .. } => return crate::worker::worker_main(),
        Command::Describe => return crate::worker::describe_main(),
        Command::Guard { host } => return crate::worker::guard_main(&host),
        Command::Init(arguments) => init::run(&context, &arguments),
        Command::Migrate(arguments) => migrate::run(&context, &arguments),
        Command::Doctor(arguments) => doctor::run(&context, &arguments),
        Command::Check(arguments) => check::run(&context, &arguments),
        Command::Serve(arguments) => {
            heap::give_back();
            heap::keep_small();
            with_runtime(serve::run(&context, arguments))
        }
        Command::Up(arguments) => with_runtime(daemon::up(&context, arguments)),
        Command::Down(arguments) => with_runtime(daemon::down(&context, arguments)),
        Command::Restart(arguments) => with_runtime(daemon::restart(&context, arguments)),
        Command::Status(arguments) => with_runtime(daemon::status(&context, arguments)),
        Command::Service(arguments) => service::run(&context, &arguments),
        Command::Template(arguments) => template::run(&context, &arguments),
        Command::Ps(arguments) => with_runtime(ps::run(&context, arguments)),
        Command::Top(arguments) => with_runtime(top::run(&context, arguments)),
        Command::Why(arguments) => with_runtime(why::run(&context, arguments)),
        Command::Logs(arguments) => with_runtime(logs::run(&context, arguments)),
        Command::Run(arguments) => with_runtime(run::run(&context, arguments)),
        Command::Models(arguments) => with_runtime(models::run(&context, arguments)),
        Command::Plugins(arguments) => plugins::run(&context, &arguments),
        Command::Wheels(arguments) => with_runtime(wheels::run(&context, arguments)),
        Command::Completions(arguments) => completions::run(&arguments, Arguments::command()),
        Command::Docs(arguments) => docs::run(&arguments, Arguments::command()),
    };
    said(match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => failure::report(&error),
    })
}

/// The exit code, once the last word is written or nobody takes it.
fn said(code: ExitCode) -> ExitCode {
    crate::telemetry::flush();
    code
}

fn reaping(arguments: impl Iterator<Item = OsString>) -> ExitCode {
    let mut code = ExitCode::FAILURE;
    // It must go on waiting for children whatever its stderr is. Without a thread for its notes it writes them itself.
    let _notes = crate::telemetry::init_notes();
    let ended = with_runtime(async {
        code = reap::run(arguments).await?;
        Ok(())
    });
    said(ended.map_or_else(|error| failure::report(&error), |()| code))
}

/// What `--help` says about exit codes.
fn exit_codes() -> String {
    let codes: Vec<String> = EXIT_CODES.iter().map(|(code, meaning)| format!("{code} {meaning}")).collect();
    format!("Exit codes: {}.", codes.join(", "))
}

fn with_runtime(command: impl Future<Output = Result<(), CliError>>) -> Result<(), CliError> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .on_thread_start(device::serve)
        .build()
        .map_err(|e| CliError::failed(format!("the runtime cannot be started: {e}")))?;
    device::serve();
    let result = runtime.block_on(command);
    // What still runs (a blocked read of stdin, a second signal's leftovers) does not hold the process.
    runtime.shutdown_background();
    result
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use clap::{CommandFactory, Parser};

    use super::{Arguments, models};
    use crate::config::{Env, Selection, parse};

    #[test]
    fn the_command_line_is_consistent() {
        Arguments::command().debug_assert();
    }

    #[test]
    fn command_lines_are_read_or_refused() {
        for (line, good) in [
            ("aihost serve --listen 127.0.0.1:1 --log-format json", true),
            ("aihost check --config x.yaml --json", true),
            ("aihost check --json --schema", false),
            ("aihost migrate config.yaml --output models.yaml --dry-run", true),
            ("aihost migrate ollama", true),
            ("aihost migrate", false),
            ("aihost models pull", true),
            ("aihost models pull a --all", false),
            ("aihost models pull --all", true),
            ("aihost models pull --all --offline", true),
            ("aihost models pull --all --offline --force", false),
            ("aihost models add hf:org/repo:Q4_K_M --name x --dry-run", true),
            ("aihost models add", false),
            ("aihost models rm x --entry", true),
            ("aihost models rm", false),
            ("aihost models prune --dry-run", true),
            ("aihost run smollm2 Hi --max-tokens 5", true),
            ("aihost run smollm2 -", true),
            ("aihost run musicgen rain -o out.wav --duration 2.5 --seed -3", true),
            ("aihost run musicgen rain --output out.flac", true),
            ("aihost run musicgen rain --duration long", false),
            ("aihost top --once --filter cold", true),
            ("aihost logs smollm2 -f", true),
            ("aihost logs", false),
            ("aihost completions bash", true),
            ("aihost completions cmd.exe", false),
            ("aihost worker --fd 3 x", true),
            ("aihost", false),
        ] {
            assert_eq!(Arguments::try_parse_from(line.split(' ')).is_ok(), good, "{line}");
        }
    }

    #[test]
    fn models_are_found_by_any_name() {
        let text = "models: {smollm2: {type: text, plugin: p, aliases: [gpt-4o-mini]}}";
        let config = parse(text, Path::new("/m.yaml"), &Selection::default(), &Env::default()).expect("valid");
        for name in ["smollm2", "gpt-4o-mini"] {
            assert_eq!(models::known(&config, name).expect("known").id.as_str(), "smollm2");
        }
        let error = format!("{:?}", models::known(&config, "smolm2").expect_err("unknown"));
        assert!(error.contains("did you mean `smollm2`?"), "{error}");
    }
}
