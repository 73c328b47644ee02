package dialogue

import (
	"fmt"
	"regexp"
	"strconv"
	"strings"
)

// Player plays one scenario.
type Player struct {
	// Execute does one line and returns its reply, one line or, of translate, several. An error ends the scenario.
	Execute func(line string) (reply string, err error)
	// Number evaluates an expression of the language; variable may be nil.
	Number func(expression string, variable func(name string) (uint64, bool)) (uint64, error)
	// Pointer is the size of the process's pointers in bytes; 0 is 8.
	Pointer int
	// Prepare does a line that is not a call but makes a file that later ones use (file, pefile). nil: there is no such.
	Prepare func(line string) error

	variables map[string]map[string]uint64 // by process
	keep      bool                         // the last call was SetLastError
}

// Step is a line that was done.
type Step struct {
	Line  int
	Call  string
	Reply string
	Want  string // empty without an arrow
	// Difference says why the reply is not what was wanted; empty if it is.
	Difference string
}

// initialError is the last error before each call of a dialogue that does not set it itself, so that one that is set shows.
const initialError = "0xdeadbeef"

// Play plays a scenario and hands each step to done, until that says false.
func (p *Player) Play(s *Scenario, done func(Step) bool) error {
	for _, l := range s.Lines {
		var failed error
		stopped := false
		err := p.expand(l.Text, func(text string) {
			if failed != nil || stopped {
				return
			}
			step, err := p.line(l.Number, text)
			if failed = err; err == nil {
				stopped = !done(step)
			}
		})
		if err == nil {
			err = failed
		}
		switch {
		case err != nil:
			return fmt.Errorf("line %d: %w", l.Number, err)
		case stopped:
			return nil
		}
	}
	return nil
}

// line does one line.
func (p *Player) line(number int, text string) (Step, error) {
	call, want, asserts := SplitArrow(text)
	s := Step{Line: number, Call: call, Want: want}
	if word, _, _ := strings.Cut(call, " "); word == "file" || word == "pefile" {
		if p.Prepare == nil {
			return s, fmt.Errorf("%s cannot be made here", word)
		}
		return s, p.Prepare(call)
	}
	who, prefix := process(call)
	if asserts && !p.keep && !strings.Contains(call, "GetLastError") {
		if _, err := p.Execute(prefix + "SetLastError " + initialError); err != nil {
			return s, err
		}
	}
	p.keep = strings.Contains(call, "SetLastError")
	reply, err := p.Execute(call)
	if err != nil {
		return s, err
	}
	s.Reply = reply
	p.remember(who, strings.TrimPrefix(call, prefix), reply)
	s.Difference, err = p.differs(who, prefix, reply, want)
	return s, err
}

var processPrefix = regexp.MustCompile(`^(\w+):\s+`)
var threadPrefix = regexp.MustCompile(`^~\S+\s+`)

// process is the process that a line is of, with the words that say so.
func process(call string) (name, prefix string) {
	if m := processPrefix.FindStringSubmatch(call); m != nil {
		return m[1], m[0]
	}
	return "", ""
}

var assignment = regexp.MustCompile(`^(\w+)\s+=\s+`)

// remember keeps the value of a variable that a line has set.
func (p *Player) remember(who, call, reply string) {
	call = threadPrefix.ReplaceAllString(call, "")
	m, words := assignment.FindStringSubmatch(call), strings.Fields(reply)
	if m == nil || len(words) < 2 || words[0] != "OK" {
		return
	}
	n, err := strconv.ParseUint(words[1], 0, 64)
	if err != nil {
		return
	}
	if p.variables == nil {
		p.variables = make(map[string]map[string]uint64)
	}
	if p.variables[who] == nil {
		p.variables[who] = make(map[string]uint64)
	}
	p.variables[who][m[1]] = n
}

// value evaluates a value of a reply or an assertion.
func (p *Player) value(who, s string) (uint64, error) {
	return p.Number(s, func(name string) (uint64, bool) {
		n, ok := p.variables[who][name]
		return n, ok
	})
}

// differs says how a reply is not what is wanted; empty if it is.
func (p *Player) differs(who, prefix, reply, want string) (string, error) {
	got, asked := strings.Fields(reply), strings.Fields(want)
	failed := len(got) > 0 && (got[0] == "ERR" || got[0] == "EXC")
	switch {
	case len(asked) == 0 && failed:
		return "it failed", nil
	case len(asked) == 0:
		return "", nil
	case len(got) == 0:
		return "no reply", nil
	case got[0] == "ERR" && len(got) > 2 && asked[0] == "OK" && len(asked) > 1 && strings.HasPrefix(asked[1], "Result="):
		got = append([]string{"OK", ""}, got[3:]...) // what a call returns when it fails; the error is not asserted
	case got[0] != asked[0]:
		return "another outcome", nil
	}
	words := 1 // of asked that are not assertions about fields
	for words < len(asked) && !assertion.MatchString(asked[words]) {
		words++
	}
	switch asked[0] {
	case "ERR":
		if words > 1 && asked[1] == "*" {
			return "", nil
		}
		for i, w := range asked[1:words] {
			if i+1 >= len(got) || !p.same(who, got[i+1], w) {
				return "another error", nil
			}
		}
		got = append([]string{"ERR", ""}, got[min(3, len(got)):]...)
	case "EXC":
		for i, w := range asked[1:] {
			if i+1 >= len(got) || !p.same(who, got[i+1], w) {
				return "another exception", nil
			}
		}
		return "", nil
	default:
		words = 1
	}
	fields := map[string]string{}
	if len(got) > 1 && got[1] != "" {
		fields["Result"] = got[1]
	}
	for _, f := range got[min(2, len(got)):] {
		name, value, _ := strings.Cut(f, "=")
		fields[name] = value
	}
	for _, a := range asked[words:] {
		if strings.HasPrefix(a, "LastError") { // replies carry it only where the call has changed it
			last, err := p.Execute(prefix + "GetLastError")
			if err != nil {
				return "", err
			}
			if words := strings.Fields(last); len(words) > 1 {
				fields["LastError"] = words[1]
			}
		}
		if why := p.field(who, fields, a); why != "" {
			return why, nil
		}
	}
	return "", nil
}

var assertion = regexp.MustCompile(`^(\w+)(!=|>=|<=|=)(.*)$`)

// field says why one assertion about a reply's fields does not hold.
func (p *Player) field(who string, fields map[string]string, a string) string {
	m := assertion.FindStringSubmatch(a)
	if m == nil {
		return a + " is not understood"
	}
	name, op, want := m[1], m[2], m[3]
	number := func(s string) (uint64, bool) {
		n, err := p.value(who, s)
		return n, err == nil
	}
	result, _ := number(fields["Result"])
	operand, isNumber := number(want)
	switch name {
	case "Align":
		if !isNumber || operand == 0 || result%operand != 0 {
			return "not a multiple of " + want
		}
		return ""
	case "ResultMask": // of the Result= that follows
		if !isNumber {
			return a + " is not understood"
		}
		fields["Result"] = strconv.FormatUint(result&operand, 10)
		return ""
	case "Handle":
		pointer := uint64(8)
		if p.Pointer > 0 {
			pointer = uint64(p.Pointer)
		}
		if (result%(2*pointer) == pointer) != (want == "1") {
			return "not the kind of handle"
		}
		return ""
	}
	got, ok := fields[name]
	if !ok {
		return "no " + name + " in the reply"
	}
	same := p.same(who, got, want)
	have, comparable := number(got)
	comparable = comparable && isNumber
	switch {
	case op == "=" && !same, op == "!=" && same,
		op == ">=" && (!comparable || have < operand), op == "<=" && (!comparable || have > operand):
		return a + " does not hold"
	}
	return ""
}

// same says whether a value of a reply is what is wanted: as numbers if both are, else as text.
func (p *Player) same(who, got, want string) bool {
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
	if isBytes(got) {
		return false
	}
	g, err1 := p.value(who, got)
	w, err2 := p.value(who, want)
	return err1 == nil && err2 == nil && g == w
}

// isBytes says that a value is bytes in hexadecimal, whose leading zeros count.
func isBytes(s string) bool { return len(s) > 1 && s[0] == '0' && s[1] != 'x' }
