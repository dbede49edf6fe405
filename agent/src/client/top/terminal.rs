//! A screen that is drawn over, and keys.

use std::{
    fs::File,
    io::{self, Write},
    sync::{
        Once,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use crossterm::{
    cursor::{Hide, MoveTo, Show},
    event::{Event, KeyCode, KeyEventKind, KeyModifiers, poll, read},
    execute, queue,
    style::Print,
    terminal::{
        Clear, ClearType, EnterAlternateScreen, LeaveAlternateScreen, disable_raw_mode,
        enable_raw_mode,
    },
};
use tokio::sync::mpsc;
use tokio_stream::{Stream, wrappers::ReceiverStream};

use super::Poke;

/// Keys that wait. More are pressed only by whoever leans on them.
const KEYS_MAX: usize = 64;

/// How long the thread that waits for keys goes on after the last one.
const LOOK: Duration = Duration::from_millis(250);

/// What is taken where the terminal does not tell.
const USUAL_SIZE: (u16, u16) = (80, 24);

static ACTIVE: AtomicBool = AtomicBool::new(false);

/// Holding it, the terminal is ours; dropping it gives it back as it was.
pub(super) struct Terminal(());

impl Terminal {
    pub(super) fn enter() -> io::Result<Self> {
        static HOOK: Once = Once::new();
        HOOK.call_once(|| {
            let usual = std::panic::take_hook();
            std::panic::set_hook(Box::new(move |panic| {
                // What it says would go with the screen.
                restore();
                usual(panic);
            }));
        });
        enable_raw_mode()?;
        ACTIVE.store(true, Ordering::SeqCst);
        let terminal = Self(());
        execute!(tty()?, EnterAlternateScreen, Hide)?;
        Ok(terminal)
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        restore();
    }
}

/// Gives the terminal back as it was, if it is ours. For whoever ends the process at once, too.
pub(in crate::client) fn restore() {
    if !ACTIVE.swap(false, Ordering::SeqCst) {
        return;
    }
    // Nothing can be done about a terminal that is gone.
    if let Ok(mut tty) = tty() {
        _ = execute!(tty, Show, LeaveAlternateScreen);
    }
    _ = disable_raw_mode();
}

/// The terminal itself. Standard output may be locked by a thread that does not get on.
fn tty() -> io::Result<File> {
    File::options().write(true).open("/dev/tty")
}

/// Columns and lines.
pub(super) fn size() -> (usize, usize) {
    let (width, height) = crossterm::terminal::size().unwrap_or(USUAL_SIZE);
    (width.into(), height.into())
}

/// Draws lines over what is there.
pub(super) fn draw(
    lines: &[String],
    (width, height): (usize, usize),
    out: &mut dyn Write,
) -> io::Result<()> {
    // In one piece, so that it does not flicker.
    let mut frame: Vec<u8> = Vec::new();
    for (number, line) in lines.iter().take(height).enumerate() {
        let shown: String = line.chars().take(width).collect();
        let row = u16::try_from(number).unwrap_or(u16::MAX);
        queue!(
            frame,
            MoveTo(0, row),
            Print(shown),
            Clear(ClearType::UntilNewLine)
        )?;
    }
    if lines.len() < height {
        let row = u16::try_from(lines.len()).unwrap_or(u16::MAX);
        queue!(frame, MoveTo(0, row), Clear(ClearType::FromCursorDown))?;
    }
    out.write_all(&frame)?;
    out.flush()
}

/// Keys as they are pressed, for as long as somebody listens.
pub(super) fn keys() -> io::Result<impl Stream<Item = Poke> + Unpin> {
    let (sender, receiver) = mpsc::channel(KEYS_MAX);
    let wait = move || {
        while !sender.is_closed() {
            let pressed = match poll(LOOK) {
                Ok(false) => continue,
                Ok(true) => read(),
                Err(error) => Err(error),
            };
            // A terminal that cannot be read has no keys.
            let Ok(pressed) = pressed else { return };
            if let Some(poke) = meaning(&pressed)
                && sender.blocking_send(poke).is_err()
            {
                return;
            }
        }
    };
    std::thread::Builder::new()
        .name("keys".to_owned())
        .spawn(wait)?;
    Ok(ReceiverStream::new(receiver))
}

/// What a key means.
pub(super) fn meaning(event: &Event) -> Option<Poke> {
    let key = match event {
        Event::Resize(..) => return Some(Poke::Resized),
        Event::Key(key) if key.kind != KeyEventKind::Release => key,
        _ => return None,
    };
    match (key.code, key.modifiers.contains(KeyModifiers::CONTROL)) {
        // No signal comes of it while the terminal is ours.
        (KeyCode::Char('c' | 'd'), true) => Some(Poke::Quit),
        (KeyCode::Char('q') | KeyCode::Esc, false) => Some(Poke::Quit),
        (KeyCode::Left | KeyCode::Char('<' | 'h'), false) => Some(Poke::Left),
        (KeyCode::Right | KeyCode::Char('>' | 'l'), false) => Some(Poke::Right),
        (KeyCode::Char('r'), false) => Some(Poke::Reverse),
        _ => None,
    }
}
