package win32

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"memfs/mm"
	"memfs/mm/process"
	"memfs/mm/store"
	"memfs/mm/win32/dialogue"
)

// configs are machines that must all give the same answers: one so small that everything is paged, and one where nothing is.
var configs = []struct {
	name          string
	frames, slots uint64
}{
	{"32 frames", 32, 2048},
	{"4096 frames", 4096, 64},
}

func newSystem(t testing.TB, frames, slots uint64) *mm.System {
	t.Helper()
	b := mm.Budget{
		Memory: 64 << 20, Frames: frames, HostBytes: 64 * mm.PageSize, PageFile: slots, CommitLimit: frames + slots,
	}
	s, err := mm.NewFromBudget(b, mm.Config{PageFiles: []mm.PageFileConfig{{Name: "test", Store: store.NewMem(), Max: slots}}})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// TestScenarios runs testdata/*.txt, and those of package heap, in the notation of testdata/NOTATION.md.
func TestScenarios(t *testing.T) {
	files, err := filepath.Glob("testdata/*.txt")
	if err != nil || len(files) == 0 {
		t.Fatalf("no scenarios: %v", err)
	}
	files = append(files, "../heap/testdata/heap.txt", "../heap/testdata/global-local.txt")
	ran := 0
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		for _, s := range dialogue.Parse(string(text)) {
			for _, c := range configs {
				if s.Tags["priv"] != "" && c.frames < 2*process.LargePage/process.PageSize {
					continue // large pages are what it is for
				}
				t.Run(s.Name+"/"+c.name, func(t *testing.T) { run(t, s, newSystem(t, c.frames, c.slots)) })
				ran++
			}
		}
	}
	t.Logf("%d runs", ran)
}

// run plays a scenario in process, and proves all invariants after each line.
func run(t *testing.T, s *dialogue.Scenario, sys *mm.System) {
	m := process.NewMachine(sys, process.OptIn, process.Listener{})
	files := newTestFiles(sys)
	m.SetFiles(files)
	arch, ok := process.ParseArch(s.Tags["arch"])
	if !ok {
		t.Fatalf("no architecture %q", s.Tags["arch"])
	}
	var first *process.Process
	start := func(_, program string) (*process.Process, error) {
		if program != "" {
			return m.StartProgram(first, process.Image{Name: process.ProgramName(program), Executable: program})
		}
		p, err := m.Start(process.Image{Arch: arch, LockMemory: s.Tags["priv"] == "SeLockMemoryPrivilege"})
		if dep := s.Tags["dep"]; err == nil && dep != "" && arch == process.X86 {
			err = p.SetExecuteFlags(dep != "off", dep == "on-noatl", false)
		}
		return p, err
	}
	for k, v := range s.Tags {
		switch k {
		case "arch", "source", "dep", "lfh-primed", "needs", "priv":
		default:
			t.Fatalf("tag %s=%s is not understood", k, v)
		}
	}
	p, err := start("", "")
	if err != nil {
		t.Fatal(err)
	}
	first = p
	session := NewSession(m, p, start)
	if _, ok := s.Tags["lfh-primed"]; ok {
		for i := range 18 {
			session.Execute(fmt.Sprintf("prime%d = malloc 12", i))
		}
		for i := range 18 {
			session.Execute(fmt.Sprintf("free $prime%d", i))
		}
	}
	player := &dialogue.Player{Number: Evaluate, Pointer: arch.Pointer(), Prepare: files.prepare, Execute: func(line string) (string, error) {
		reply, errno := session.Execute(line)
		if ok := strings.HasPrefix(reply, "OK") || strings.HasPrefix(reply, "ERR 0 "); ok != (errno == 0) {
			t.Errorf("%s: reply %q with errno %v", line, reply, errno)
		}
		return reply, nil
	}}
	check := func(where string) {
		for _, err := range append(sys.Check(), m.Check()...) {
			t.Errorf("%s: %v", where, err)
		}
	}
	var last dialogue.Step
	err = player.Play(s, func(step dialogue.Step) bool {
		if step.Line != last.Line { // not after each time of a repeat
			check(last.Call)
		}
		last = step
		switch {
		case strings.HasPrefix(step.Call, "file "), strings.HasPrefix(step.Call, "pefile "):
		case step.Want == "":
			t.Errorf("%s has no arrow", step.Call)
		case step.Difference != "":
			t.Errorf("%s\n  got  %s\n  want %s\n  %s", step.Call, step.Reply, step.Want, step.Difference)
		}
		return true
	})
	check(last.Call)
	if err != nil {
		t.Error(err)
	}
	for _, p := range m.Processes() {
		m.End(p)
	}
	files.close()
	files.close()
	if err := sys.Close(); err != nil {
		t.Error(err)
	}
}
