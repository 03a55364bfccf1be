//! What a gdb that we start ourselves is told first.

use std::path::Path;

/// A gdb script that connects to `address` (from [`crate::Listener::address`]), with symbols from
/// the given files: an ELF file each, moved by so many bytes.
pub fn startup_script(address: &str, symbols: &[(&Path, i64)]) -> String {
    let mut script = String::from(
        "set confirm off\n\
         set pagination off\n\
         set architecture i386:x86-64\n\
         set breakpoint always-inserted on\n\
         set remotetimeout 120\n\
         set tcp connect-timeout 10\n\
         set backtrace past-main on\n\
         set backtrace limit 64\n",
    );
    for (file, offset) in symbols {
        let file = file.display().to_string().replace('\\', "\\\\").replace('"', "\\\"");
        script += &match offset {
            0 => format!("add-symbol-file \"{file}\"\n"),
            offset => format!("add-symbol-file \"{file}\" -o {offset:#x}\n"),
        };
    }
    script += &format!("target remote {address}\n");
    script + COMMANDS
}

/// After a `monitor` command the machine may stand elsewhere. gdb must forget registers and memory,
/// and also the values of watched expressions, which it compares with to tell whether one changed:
/// taking a watchpoint out and in makes it read the value anew. That takes gdb's Python; a gdb
/// without it (there is no `$_any_caller_is` then) may miss the first change after a seek.
const COMMANDS: &str = "\
define hookpost-monitor
maintenance flush register-cache
maintenance flush dcache
if !$_isvoid($_any_caller_is)
python
for watch in gdb.breakpoints():
    if watch.enabled and watch.type not in (gdb.BP_BREAKPOINT, gdb.BP_HARDWARE_BREAKPOINT):
        watch.enabled = False
        watch.enabled = True
end
end
end
define seek
monitor seek $arg0
frame
end
document seek
Go to a place in history: an instruction count, a share (50%), guest time (12.5s), start, end,
or a bookmark's name.
end
define when
monitor when
end
document when
Where in history this is.
end
set confirm on
";
