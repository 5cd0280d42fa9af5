//! The options that do what an error advises.

use crate::error::Remedy;

/// One line of advice, as somebody at a shell carries it out.
pub(super) fn spell(remedy: &Remedy) -> String {
    let words = match remedy {
        Remedy::ShorterWindow(most) => return format!("use --window {most} or less"),
        Remedy::LargerBudget(least) => {
            return format!("use `--budget {least}` or more, or a larger --keep");
        }
        Remedy::UseMethod(method) => {
            return format!("use --method {method} alone, or --keep or --budget for a size");
        }
        Remedy::GiveText => "add --text FILE",
        Remedy::GiveMoreText => "give more text or a smaller --window",
        Remedy::GiveSameText => {
            "give the same --text, --windows, --window and --seed, or draw the plan again"
        }
        Remedy::TextFormat => {
            "--text takes plain UTF-8 text, or .jsonl with a `text` field per line"
        }
        Remedy::IdsFormat => {
            "--ids takes a safetensors file with `input_ids` i64 [windows, length]"
        }
        Remedy::GiveTokenizer => {
            "copy tokenizer.json into the folder; `bantam eval --ids` needs none"
        }
        Remedy::NameSize => {
            "add --budget SIZE, --keep FRACTION, --uniform FRACTION or --reduce FRACTION"
        }
        Remedy::Measure => "add --measure to read the weights",
        Remedy::MakeStack => {
            "`bantam compress --method bitstack` makes one, of which any budget can be read"
        }
        Remedy::CutStack => "`bantam fit` cuts it to any size",
        Remedy::DrawPlan => "write a plan with `bantam plan … -o FILE`",
        Remedy::Resume => "add --resume to go on with it, or name another --job folder",
        Remedy::OtherJob => "name another --job folder, or delete this one",
        Remedy::NewJob => "--job takes a new folder, or one that an earlier run made",
        Remedy::ComputeOn { gpu: true } => {
            "go on with `--compute cuda`, or name another --job folder"
        }
        Remedy::ComputeOn { gpu: false } => {
            "go on with `--compute cpu`, or name another --job folder"
        }
        Remedy::InspectSystem => {
            "`bantam inspect --system` shows what was found; `--compute cpu` needs no GPU"
        }
        Remedy::LessDeviceMemory => {
            "use a smaller --window, a larger --device-memory or `--compute cpu`"
        }
        Remedy::LimitDeviceMemory => {
            "others may be using the GPU: name with --device-memory what bantam may take"
        }
        Remedy::OtherFolderOrReplace => "choose another folder, or pass --overwrite",
        Remedy::OtherFolder => "choose another folder with -o",
        Remedy::FolderInside => "choose a folder inside it with -o",
        Remedy::FolderOutsideInput => {
            "bantam never writes into its input; choose a folder outside it with -o"
        }
        Remedy::FreeSpace => "free some space, or write to another disk with -o",
        Remedy::Advice(advice) => return advice.clone(),
    };
    words.to_owned()
}
