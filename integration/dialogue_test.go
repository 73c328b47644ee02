package integration

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// The dialogues of mm/win32 and mm/heap over a mount: what their own tests say to a session, a program says to a ctl here,
// and knows nothing but the replies. The notation is that of mm/win32/testdata/NOTATION.md.

// dialogueFiles are run here. What needs another boot policy or another program is their own tests' alone.
var dialogueFiles = []string{
	"../mm/heap/testdata/heap.txt", "../mm/heap/testdata/global-local.txt", "../mm/win32/testdata/rules-heap.txt",
	"../mm/win32/testdata/rules-global.txt", "../mm/win32/testdata/rules-realloc.txt",
}

// dialogue is one scenario.
type dialogue struct {
	name  string
	tags  map[string]string
	lines []string
}

var (
	dialogueHead = regexp.MustCompile(`^# scenario: (\S+)(.*)`)
	dialogueTag  = regexp.MustCompile(`\[([a-z-]+)(?:[=:] ?([^]]*))?\]`)
	dialogueLoop = regexp.MustCompile(`^repeat (?:(\w+)=)?(\d+)(?:\.\.(\d+))?: (.*)`)
	dialogueTest = regexp.MustCompile(`^(\w+)(!=|>=|<=|=)(.*)$`)
)

func readDialogues(t *testing.T, file string) (all []*dialogue) {
	t.Helper()
	for line := range strings.Lines(string(mustRead(t, file))) {
		line = strings.TrimSpace(line)
		if h := dialogueHead.FindStringSubmatch(line); h != nil {
			d := &dialogue{name: h[1], tags: make(map[string]string)}
			for _, m := range dialogueTag.FindAllStringSubmatch(h[2], -1) {
				d.tags[m[1]] = m[2]
			}
			all = append(all, d)
		} else if line != "" && line[0] != '#' && len(all) > 0 {
			all[len(all)-1].lines = append(all[len(all)-1].lines, line)
		}
	}
	return all
}

// speaker is a program that speaks to a process.
type speaker struct {
	t    *testing.T
	m    *mount
	ctl  *os.File
	ptr  uint64
	set  bool // SetLastError was the last line
	vars map[string]string
}

// say writes lines in as few writes as may be and returns their replies. The errno of a write must be that of its last
// line.
func (s *speaker) say(lines ...string) (replies []string) {
	s.t.Helper()
	for len(lines) > 0 {
		n := min(len(lines), 100)
		_, err := s.ctl.WriteString(strings.Join(lines[:n], "\n") + "\n")
		b := make([]byte, 64<<10)
		k, readErr := s.ctl.Read(b)
		if readErr != nil && readErr != io.EOF {
			s.t.Fatal(readErr)
		}
		got := strings.Split(strings.TrimSuffix(string(b[:k]), "\n"), "\n")
		if len(got) != n {
			s.t.Fatalf("%d replies to %d lines, from %q on: %q", len(got), n, lines[0], got)
		}
		last := got[n-1]
		if ok := strings.HasPrefix(last, "OK") || strings.HasPrefix(last, "ERR 0 "); ok != (err == nil) {
			s.t.Errorf("%s: reply %q, and the write: %v", lines[n-1], last, err)
		}
		replies = append(replies, got...)
		lines = lines[n:]
	}
	return replies
}

// play runs a dialogue in a process of its own.
func (m *mount) play(t *testing.T, d *dialogue, name string) {
	s := &speaker{t: t, m: m, ptr: 8, vars: make(map[string]string)}
	if arch := d.tags["arch"]; arch == "x86" {
		name, s.ptr = name+"@x86", 4
	}
	must(t, os.Mkdir(m.path(".proc", name), 0o755))
	defer func() {
		must(t, os.Remove(m.path(".proc", name)))
		if err := os.Remove(m.path(".proc/P2")); err != nil && !errors.Is(err, unix.ENOENT) {
			t.Error(err)
		}
	}()
	var err error
	s.ctl, err = os.OpenFile(m.path(".proc", name, "ctl"), os.O_RDWR, 0)
	must(t, err)
	defer s.ctl.Close()
	switch d.tags["dep"] {
	case "on":
		s.say("SetProcessDEPPolicy 1")
	case "off":
		s.say("SetProcessDEPPolicy 0")
	}
	if _, ok := d.tags["lfh-primed"]; ok {
		for i := range 18 {
			s.say(fmt.Sprintf("prime%d = GlobalAlloc GMEM_FIXED 12", i))
		}
		for i := range 18 {
			s.say(fmt.Sprintf("GlobalFree $prime%d", i))
		}
	}
	for _, line := range d.lines {
		s.line(line)
	}
}

// line does a line, or one that is repeated. The counter of a loop is written into the line, since a program has no other
// way to set a variable.
func (s *speaker) line(line string) {
	s.t.Helper()
	m := dialogueLoop.FindStringSubmatch(line)
	if m == nil {
		s.single(line)
		return
	}
	from, to := 1, atoi(s.t, m[2])
	if m[3] != "" {
		from, to = to, atoi(s.t, m[3])
	}
	call, want, _ := strings.Cut(m[4], " -> ")
	var lines []string
	for i := from; i <= to; i++ {
		lines = append(lines, strings.ReplaceAll(call, "$"+m[1], strconv.Itoa(i)))
		if m[1] == "" {
			lines[len(lines)-1] = call
		}
	}
	s.set = false
	for i, reply := range s.say(lines...) {
		if why := s.compare(lines[i], reply, want); why != "" {
			s.t.Errorf("%s\n  got  %s\n  want %s\n  %s", lines[i], reply, want, why)
			return
		}
	}
}

func atoi(t *testing.T, s string) int {
	t.Helper()
	n, err := strconv.Atoi(s)
	must(t, err)
	return n
}

func (s *speaker) single(line string) {
	s.t.Helper()
	call, want, ok := strings.Cut(line, " -> ")
	if !ok {
		s.t.Fatalf("%q has no arrow", line)
	}
	var lines []string
	if who, _, other := strings.Cut(call, ": "); !s.set && !strings.Contains(call, "GetLastError") {
		before := "SetLastError 0xdeadbeef"
		if other {
			before = who + ": " + before
		}
		lines = append(lines, before)
	}
	s.set = strings.Contains(call, "SetLastError")
	replies := s.say(append(lines, call)...)
	reply := replies[len(replies)-1]
	if why := s.compare(call, reply, want); why != "" {
		s.t.Errorf("%s\n  got  %s\n  want %s\n  %s", call, reply, want, why)
	}
}

// value evaluates a value of the notation: terms joined by | or +, each a number, $name, a constant, or ~ before one.
func (s *speaker) value(text string) (n uint64) {
	s.t.Helper()
	for sum := range strings.SplitSeq(text, "+") {
		term := uint64(0)
		for word := range strings.SplitSeq(sum, "|") {
			term |= s.word(word)
		}
		n += term
	}
	return n
}

func (s *speaker) word(word string) uint64 {
	s.t.Helper()
	if rest, ok := strings.CutPrefix(word, "~"); ok {
		return ^s.word(rest)
	}
	if name, ok := strings.CutPrefix(word, "$"); ok {
		if word, ok = s.vars[name]; !ok {
			s.t.Fatalf("there is no variable %s", name)
		}
	}
	if n, err := strconv.ParseUint(word, 0, 64); err == nil {
		return n
	}
	// What a constant is, the process knows. None has more than 32 bits.
	n, err := strconv.ParseUint(strings.TrimPrefix(s.say("SetLastError "+word, "GetLastError")[1], "OK "), 0, 64)
	must(s.t, err)
	return n
}

// compare says how a reply differs from what is wanted; empty if it does not.
func (s *speaker) compare(call, reply, want string) string {
	s.t.Helper()
	got, asked := strings.Fields(reply), strings.Fields(want)
	fields := map[string]string{"LastError": "0xdeadbeef"}
	switch {
	case asked[0] == "EXC" && got[0] == "EXC":
		for i, w := range asked[1:] {
			if len(got) <= i+1 || !s.same(got[i+1], w) {
				return "another exception"
			}
		}
		return ""
	case asked[0] == "ERR" && got[0] == "ERR":
		if asked[1] == "*" {
			return ""
		}
		if got[1] != asked[1] || got[2] != asked[2] {
			return "another error"
		}
		got, asked = got[3:], asked[3:]
	case asked[0] == "OK" && got[0] == "ERR" && len(asked) > 1 && strings.HasPrefix(asked[1], "Result="):
		got, asked = got[3:], asked[1:] // what a call returns when it fails; the error is not asserted
	case asked[0] == "OK" && got[0] == "OK":
		fields["Result"] = got[1]
		if name, _, ok := strings.Cut(call, " = "); ok {
			s.vars[name[strings.LastIndexByte(name, ' ')+1:]] = got[1]
		}
		got, asked = got[2:], asked[1:]
	default:
		return "another outcome"
	}
	for _, f := range got {
		name, value, _ := strings.Cut(f, "=")
		fields[name] = value
	}
	for _, a := range asked {
		if why := s.field(fields, a); why != "" {
			return why
		}
	}
	return ""
}

func (s *speaker) field(fields map[string]string, a string) string {
	s.t.Helper()
	m := dialogueTest.FindStringSubmatch(a)
	if m == nil {
		return a + " is not understood"
	}
	name, op, want := m[1], m[2], m[3]
	switch name {
	case "Align":
		if s.value(fields["Result"])%s.value(want) != 0 {
			return "not a multiple of " + want
		}
		return ""
	case "ResultMask":
		fields["Result"] = strconv.FormatUint(s.value(fields["Result"])&s.value(want), 10)
		return ""
	case "Handle":
		if (s.value(fields["Result"])%(2*s.ptr) == s.ptr) != (want == "1") {
			return "not the kind of handle"
		}
		return ""
	}
	got, ok := fields[name]
	switch {
	case !ok:
		return "no " + name + " in the reply"
	case op == "=" && !s.same(got, want), op == "!=" && s.same(got, want),
		op == ">=" && s.value(got) < s.value(want), op == "<=" && s.value(got) > s.value(want):
		return a + " does not hold"
	}
	return ""
}

// same says whether a value of a reply is what is wanted: as text, as lists, or as numbers.
func (s *speaker) same(got, want string) bool {
	s.t.Helper()
	if got == want {
		return true
	}
	g, w := strings.Split(got, ","), strings.Split(want, ",")
	if len(g) != len(w) {
		return false
	}
	if len(g) > 1 {
		for i := range g {
			if !s.same(g[i], w[i]) {
				return false
			}
		}
		return true
	}
	if len(got) > 1 && got[0] == '0' && got[1] != 'x' {
		return false // bytes, whose leading zeros count
	}
	return s.value(got) == s.value(want)
}

// TestHeapDialogues has every dialogue about heaps and Global memory over a mount that is smaller than what they touch.
func TestHeapDialogues(t *testing.T) {
	m := mountMemfs(t, options{memory: "16M", pageFile: "256M"})
	before := m.counters("meminfo").get(t, "Committed_AS")
	ran := 0
	for _, file := range dialogueFiles {
		for i, d := range readDialogues(t, file) {
			if testing.Short() && filepath.Base(file) == "rules-realloc.txt" && i%6 != 0 {
				continue
			}
			t.Run(d.name, func(t *testing.T) { m.play(t, d, fmt.Sprint("d", ran)) })
			ran++
		}
	}
	if ran < 100 {
		t.Errorf("%d dialogues; the files have more", ran)
	}
	if after := m.counters("meminfo").get(t, "Committed_AS"); after != before {
		t.Errorf("%d kB are committed after all processes have ended, %d before", after, before)
	}
	if got := string(mustRead(t, m.path(".proc/check"))); got != "ok\n" {
		t.Errorf("check: %s", got)
	}
}
