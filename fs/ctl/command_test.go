package ctl

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"memfs/mm"
	"memfs/mm/store"
)

func testErrno(err error) syscall.Errno {
	if errors.Is(err, mm.StatusBusy) {
		return syscall.EBUSY
	}
	return 0
}

// session is one ctl with what is behind it.
type session struct {
	machine *fakeMachine
	mount   *Mount
	files   []*fakeFile
	target  *Target
	env     Env
}

func newSession() *session {
	s := &session{files: []*fakeFile{{size: 10000}, {size: 1 << 20}}, env: Env{Gate: make(Gate, 1), Errno: testErrno}}
	s.mount, s.machine = testMount()
	s.mount.OpenPageFile = func(spec string) (mm.PageFileConfig, error) {
		if spec == "/bad" {
			return mm.PageFileConfig{}, errors.New("page file /bad: no such directory")
		}
		return mm.PageFileConfig{Name: spec, Store: store.NewMem(), Max: 256}, nil
	}
	s.mount.Inject = func(faults string) (uint64, error) {
		if faults == "burn" {
			return 0, errors.New("unknown")
		}
		s.machine.call("Inject(" + faults + ")")
		return 3, nil
	}
	s.target = &Target{Files: func(f func(File)) uint64 {
		for _, file := range s.files {
			f(file)
		}
		if s.target.Dir {
			return 4
		}
		return 0
	}}
	s.files = s.files[:1]
	return s
}

// execute runs one write at the manager's ctl, or at the file's or directory's.
func (s *session) execute(who string, input []byte) ([]byte, syscall.Errno) {
	switch who {
	case "manager":
		return Execute(ManagerVerbs, s.mount, input, s.env)
	case "directory":
		s.target.Dir, s.files = true, s.files[:2]
	case "file":
		s.target.Dir, s.files = false, s.files[:1]
	}
	return Execute(FileVerbs, s.target, input, s.env)
}

func (s *session) calls() []string {
	calls := slices.Clone(s.machine.calls)
	for _, f := range s.files {
		calls = append(calls, f.calls...)
	}
	return calls
}

// set puts the things behind the ctl in a state that a dialogue asks for.
func (s *session) set(what string) error {
	switch what {
	case "gate full":
		s.env.Gate.TryEnter()
	case "store failing":
		s.machine.err = fmt.Errorf("page file 0: %w", mm.StatusOutPageError)
		s.files[0].err = s.machine.err
	case "busy":
		s.machine.err, s.files[0].err = mm.StatusBusy, mm.StatusBusy
	case "untrusted":
		s.env.Untrusted = true
	case "deleted":
		s.files[0].err = mm.StatusDeleted
	case "corrupt":
		s.machine.findings = []error{errTwoLines, errTwoLines}
	default:
		return fmt.Errorf("unknown state %q", what)
	}
	return nil
}

// TestDialogues plays testdata/*.dialogue. A line "WHO> INPUT" (with Go's escapes) writes to the ctl of manager, file or
// directory; the lines below it, up to an empty one, are the answers, then "= ERRNO" if the write fails, then "! CALLS"
// with what was called behind the ctl. "set WHAT" prepares; each file is one session.
func TestDialogues(t *testing.T) {
	names, err := filepath.Glob("testdata/*.dialogue")
	if err != nil || len(names) == 0 {
		t.Fatal("no dialogues", err)
	}
	for _, name := range names {
		script, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		var out strings.Builder
		s := newSession()
		s.files = s.files[:2]
		skip := false // old answers
		for line := range strings.Lines(string(script)) {
			line = strings.TrimSuffix(line, "\n")
			if what, ok := strings.CutPrefix(line, "set "); ok {
				if err := s.set(what); err != nil {
					t.Fatal(name, err)
				}
			} else if who, input, ok := strings.Cut(line, "> "); ok && slices.Contains([]string{"manager", "file", "directory"}, who) {
				fmt.Fprintln(&out, line)
				s.machine.calls = nil
				for _, f := range s.files[:2] {
					f.calls = nil
				}
				input = strings.NewReplacer(`\n`, "\n", `\t`, "\t", `\r`, "\r", `\0`, "\x00", `\xff`, "\xff").Replace(input)
				answer, errno := s.execute(who, []byte(input))
				out.Write(answer)
				if errno != 0 {
					fmt.Fprintf(&out, "= %s\n", errnoName(errno))
				}
				if calls := s.calls(); len(calls) > 0 {
					fmt.Fprintf(&out, "! %s\n", strings.Join(calls, " "))
				}
				skip = true
				continue
			} else if line != "" && skip {
				continue
			}
			skip = false
			fmt.Fprintln(&out, line)
		}
		golden(t, filepath.Base(name), out.String())
	}
}

// TestGateIsLeft: whatever becomes of a command, its place at the gate is free afterwards.
func TestGateIsLeft(t *testing.T) {
	s := newSession()
	for _, state := range []string{"", "store failing"} {
		if state != "" {
			if err := s.set(state); err != nil {
				t.Fatal(err)
			}
		}
		for _, input := range []string{"trim", "empty all", "flush", "nonsense"} {
			s.execute("manager", []byte(input))
			s.execute("file", []byte(input))
			if n := len(s.env.Gate); n != 0 {
				t.Fatalf("%s after %q: %d places taken", state, input, n)
			}
		}
	}
}

// TestNoise: a megabyte of anything is one clear error, and nothing is done.
func TestNoise(t *testing.T) {
	for _, unit := range []string{"\x00", "trim\n", "trim ", "a", "\n", "trim\r", "# comment\n", "\xff\xfe"} {
		s := newSession()
		input := []byte(strings.Repeat(unit, 1<<20/len(unit)))
		answer, errno := s.execute("manager", input)
		if errno == 0 || bytes.Count(answer, []byte("\n")) != 1 || !bytes.HasPrefix(answer, []byte("ERR ")) {
			t.Errorf("%q: %.80q, errno %v; want one ERR", unit, answer, errno)
		}
		if calls := s.calls(); calls != nil {
			t.Errorf("%q: called %v", unit, calls)
		}
	}
	s := newSession()
	if answer, errno := s.execute("manager", []byte(strings.Repeat("zero\n", MaxCommands+1))); errno != syscall.E2BIG || s.calls() != nil {
		t.Errorf("%d commands: %q, errno %v, calls %v", MaxCommands+1, answer, errno, s.calls())
	}
	if _, errno := s.execute("manager", []byte(strings.Repeat("\nzero\n#\n", MaxCommands))); errno != 0 || len(s.calls()) != MaxCommands {
		t.Errorf("%d commands: errno %v, %d calls", MaxCommands, errno, len(s.calls()))
	}
}

func TestParseSize(t *testing.T) {
	for s, want := range map[string]int64{
		"0": 0, "4096": 4096, "010": 10, "4k": 4096, "4K": 4096, "3M": 3 << 20, "7E": 7 << 60, "0x1e": 30, "0xE": 14,
		"9223372036854775807": 1<<63 - 1, "0x7fffffffffffffff": 1<<63 - 1,
		"": -1, "-1": -1, "8E": -1, "K": -1, "0x": -1, "1KK": -1, "1_000": -1, "0b1": -1, "9223372036854775808": -1, "1.5K": -1,
		"+1": -1, "0x-1": -1, "0X10": -1, "4kiB": -1,
	} {
		got, err := parseSize(s)
		if err != nil {
			got = -1
		}
		if got != want {
			t.Errorf("parseSize(%q) = %d, %v; want %d", s, got, err, want)
		}
	}
}

// FuzzCommand feeds both languages with anything. However it looks: each command has its answer, the write fails exactly
// if the last one is an ERR, and the manager is asked for nothing but what a line says in so many words.
func FuzzCommand(f *testing.F) {
	for _, seed := range []string{
		"trim\n", "help", "empty standby\nempty", "prefetch 4K 0x10", "flush\r\nzero", "check now", "\n#\n\n", "empty\tall",
		"prefetch 8E", "\x00", "trim\x85", "empty standby standby0", "prefetch 0x7fffffffffffffff 1", "help help", "étrim",
	} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, input []byte) {
		for _, who := range []string{"manager", "file", "directory"} {
			s := newSession()
			answer, errno := s.execute(who, input)
			var meant []string // lines that are commands without arguments
			commands := 0
			for line := range strings.Lines(string(input)) {
				words := strings.Fields(line)
				if len(words) == 0 || strings.HasPrefix(words[0], "#") {
					continue
				}
				commands++
				meant = append(meant, strings.Join(words, " "))
			}
			answers, last := readAnswers(t, answer)
			refused := len(answers) == 1 && strings.HasSuffix(answers[0], "nothing was done")
			if !refused && len(answers) != commands {
				t.Fatalf("%s: %d answers to %d commands:\n%s", who, len(answers), commands, answer)
			}
			if (errno != 0) != strings.HasPrefix(last, "ERR "+errnoName(errno)) {
				t.Fatalf("%s: errno %v, last answer %q", who, errno, last)
			}
			if who == "manager" {
				want := 0
				for _, v := range ManagerVerbs {
					for _, line := range meant {
						if line != v.Words || refused || v.Size || v.Text != "" || v.Digit > 0 {
							continue // not this one, or an argument is missing
						}
						want += max(1, map[string]int{"trim": 2, "empty all": 4, "empty workingsets": 2}[v.Words])
					}
				}
				if got := len(s.machine.calls); got != want {
					t.Fatalf("%d calls, want %d: %v", got, want, s.machine.calls)
				}
			}
			if len(s.env.Gate) != 0 {
				t.Fatal("a place at the gate is still taken")
			}
		}
	})
}

// readAnswers is the reader's side of the language: one line an answer, but for the lines of help.
func readAnswers(t *testing.T, text []byte) (answers []string, last string) {
	t.Helper()
	if len(text) > 0 && text[len(text)-1] != '\n' {
		t.Fatalf("the last line does not end: %q", text)
	}
	lines := strings.Split(string(text), "\n")
	for i := 0; i < len(lines)-1; i++ {
		line := lines[i]
		if !strings.HasPrefix(line, "OK") && !strings.HasPrefix(line, "ERR ") {
			t.Fatalf("answer %q", line)
		}
		answers, last = append(answers, line), line
		var help int
		if _, err := fmt.Sscanf(line, "OK lines=%d", &help); err == nil {
			i += help
		}
	}
	return answers, last
}
