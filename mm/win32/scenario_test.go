package win32

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"memfs/mm"
	"memfs/mm/process"
	"memfs/mm/store"
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
		for _, s := range scenarios(string(text)) {
			for _, c := range configs {
				t.Run(s.name+"/"+c.name, func(t *testing.T) { s.run(t, newSystem(t, c.frames, c.slots)) })
				ran++
			}
		}
	}
	t.Logf("%d runs", ran)
}

// scenario is one dialogue and the state that it starts in.
type scenario struct {
	name  string
	tags  map[string]string
	lines []string
}

var header = regexp.MustCompile(`^# scenario: (\S+)(.*)`)
var tag = regexp.MustCompile(`\[([a-z-]+)(?:[=:] ?([^]]*))?\]`)

func scenarios(text string) (all []*scenario) {
	for line := range strings.Lines(text) {
		line = strings.TrimSpace(line)
		if h := header.FindStringSubmatch(line); h != nil {
			s := &scenario{name: h[1], tags: make(map[string]string)}
			for _, m := range tag.FindAllStringSubmatch(h[2], -1) {
				s.tags[m[1]] = m[2]
			}
			all = append(all, s)
		} else if line != "" && len(all) > 0 {
			s := all[len(all)-1]
			s.lines = append(s.lines, line)
		}
	}
	return all
}

// player runs one scenario.
type player struct {
	t       *testing.T
	sys     *mm.System
	session *Session
	set     bool // SetLastError was the last line
}

func (s *scenario) run(t *testing.T, sys *mm.System) {
	m := process.NewMachine(sys, process.OptIn, process.Listener{})
	arch, ok := process.ParseArch(s.tags["arch"])
	if !ok {
		t.Fatalf("no architecture %q", s.tags["arch"])
	}
	start := func(string) (*process.Process, error) {
		p, err := m.Start(process.Image{Arch: arch})
		if dep := s.tags["dep"]; err == nil && dep != "" && arch == process.X86 {
			err = p.SetExecuteFlags(dep != "off", dep == "on-noatl", false)
		}
		return p, err
	}
	for k, v := range s.tags {
		switch k {
		case "arch", "source", "dep", "lfh-primed":
		default:
			t.Fatalf("tag %s=%s is not understood", k, v)
		}
	}
	p, err := start("")
	if err != nil {
		t.Fatal(err)
	}
	pl := &player{t: t, sys: sys, session: NewSession(m, p, start)}
	if _, ok := s.tags["lfh-primed"]; ok {
		for i := range 18 {
			pl.session.Execute(fmt.Sprintf("prime%d = malloc 12", i))
		}
		for i := range 18 {
			pl.session.Execute(fmt.Sprintf("free $prime%d", i))
		}
	}
	for _, line := range s.lines {
		pl.line(line)
	}
	for _, p := range m.Processes() {
		m.End(p)
	}
	if err := sys.Close(); err != nil {
		t.Error(err)
	}
}

var loop = regexp.MustCompile(`^repeat (?:(\w+)=)?(\w+)(?:\.\.(\w+))?(?: step=(\w+))?: (.*)`)

func (p *player) line(line string) {
	p.t.Helper()
	m := loop.FindStringSubmatch(line)
	if m == nil {
		p.single(line)
		p.check(line)
		return
	}
	defer p.check(line)
	num := func(s string, otherwise uint64) uint64 {
		if s == "" {
			return otherwise
		}
		n, err := number(s, nil)
		if err != nil {
			p.t.Fatalf("%s: %v", line, err)
		}
		return n
	}
	from, to := uint64(1), num(m[2], 0)
	if m[3] != "" {
		from, to = to, num(m[3], 0)
	}
	for i := from; i <= to; i += num(m[4], 1) {
		if m[1] != "" {
			p.session.mu.Lock()
			p.session.peers[""].variables[m[1]] = i
			p.session.mu.Unlock()
		}
		p.single(m[5])
	}
}

// single does one line and compares the reply with what follows the arrow.
func (p *player) single(line string) {
	p.t.Helper()
	call, want, ok := strings.Cut(line, " -> ")
	if !ok {
		p.t.Fatalf("%q has no arrow", line)
	}
	who := p.who(call)
	if !p.set && !strings.Contains(call, "GetLastError") {
		who.process.SetLastError(0xdeadbeef)
	}
	p.set = strings.Contains(call, "SetLastError")
	reply, errno := p.session.Execute(call)
	if ok := strings.HasPrefix(reply, "OK") || strings.HasPrefix(reply, "ERR 0 "); ok != (errno == 0) {
		p.t.Errorf("%s: reply %q with errno %v", call, reply, errno)
	}
	if why := p.compare(who, reply, want); why != "" {
		p.t.Errorf("%s\n  got  %s\n  want %s\n  %s", call, reply, want, why)
	}
}

// check is the machine's own check of itself.
func (p *player) check(line string) {
	p.t.Helper()
	for _, err := range append(p.sys.Check(), p.session.Machine.Check()...) {
		p.t.Errorf("%s: %v", line, err)
	}
}

// who is the process that a line is of.
func (p *player) who(call string) *peer {
	name, _, ok := strings.Cut(call, ": ")
	if !ok || !isName(name) {
		name = ""
	}
	peer, err := p.session.peer(name)
	if err != nil {
		p.t.Fatal(err)
	}
	return peer
}

// compare says how a reply differs from what is wanted; empty if it does not.
func (p *player) compare(who *peer, reply, want string) string {
	got, asked := strings.Fields(reply), strings.Fields(want)
	switch result := strings.HasPrefix(strings.Join(asked[1:], " "), "Result="); {
	case got[0] == asked[0]:
	case got[0] == "ERR" && asked[0] == "OK" && result: // what a call returns when it fails; the error is not asserted
		got = append([]string{"OK", "none"}, got[3:]...)
	default:
		return "another outcome"
	}
	switch asked[0] {
	case "ERR":
		if asked[1] == "*" {
			return ""
		}
		if strings.Join(got[1:3], " ") != strings.Join(asked[1:3], " ") {
			return "another error"
		}
		got, asked = append([]string{"ERR", "none"}, got[3:]...), append([]string{"ERR"}, asked[3:]...)
	case "EXC":
		for i, w := range asked[1:] {
			if !p.same(who, got[1+i], w) {
				return "another exception"
			}
		}
		return ""
	}
	fields := map[string]string{"Result": got[1], "LastError": fmt.Sprint(uint32(who.process.LastError()))}
	for _, f := range got[2:] {
		name, value, _ := strings.Cut(f, "=")
		fields[name] = value
	}
	for _, a := range asked[1:] {
		if why := p.field(who, fields, a); why != "" {
			return why
		}
	}
	return ""
}

var assertion = regexp.MustCompile(`^(\w+)(!=|>=|<=|=)(.*)$`)

func (p *player) field(who *peer, fields map[string]string, a string) string {
	m := assertion.FindStringSubmatch(a)
	if m == nil {
		return a + " is not understood"
	}
	name, op, want := m[1], m[2], m[3]
	value := func(s string) uint64 {
		n, err := number(s, func(v string) (uint64, bool) { return p.session.variable(who, v) })
		if err != nil {
			p.t.Fatalf("%s: %v", a, err)
		}
		return n
	}
	switch name {
	case "Align":
		if value(fields["Result"])%value(want) != 0 {
			return "not a multiple of " + want
		}
		return ""
	case "ResultMask":
		fields["Result"] = strconv.FormatUint(value(fields["Result"])&value(want), 10)
		return ""
	case "Handle":
		ptr := uint64(who.process.Image().Arch.Pointer())
		if (value(fields["Result"])%(2*ptr) == ptr) != (want == "1") {
			return "not the kind of handle"
		}
		return ""
	}
	got, ok := fields[name]
	switch {
	case !ok:
		return "no " + name + " in the reply"
	case op == "=" && !p.same(who, got, want), op == "!=" && p.same(who, got, want),
		op == ">=" && value(got) < value(want), op == "<=" && value(got) > value(want):
		return a + " does not hold"
	}
	return ""
}

// same says whether a value of a reply is what is wanted: as numbers if both are, else as text.
func (p *player) same(who *peer, got, want string) bool {
	if list, ok := strings.CutPrefix(want, "any("); ok {
		for w := range strings.SplitSeq(strings.TrimSuffix(list, ")"), ",") {
			if p.same(who, got, w) {
				return true
			}
		}
		return false
	}
	if g, w := strings.Split(got, ","), strings.Split(want, ","); len(g) > 1 || len(w) > 1 {
		if len(g) != len(w) {
			return false
		}
		for i := range g {
			if !p.same(who, g[i], w[i]) {
				return false
			}
		}
		return true
	}
	if got == want {
		return true
	}
	variable := func(v string) (uint64, bool) { return p.session.variable(who, v) }
	g, err1 := number(got, variable)
	w, err2 := number(want, variable)
	return err1 == nil && err2 == nil && g == w && !isHexData(got)
}

// isHexData says that a value is bytes, whose leading zeros count.
func isHexData(s string) bool {
	return len(s) > 1 && s[0] == '0' && s[1] != 'x'
}
