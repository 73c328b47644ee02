// Package dialogue reads and plays dialogues in the control language: calls, one a line, each with the reply that it must
// get behind an arrow.
//
//	# scenario: guard-is-consumed [arch=x64]
//	r = VirtualAlloc 0 0x1000 MEM_COMMIT PAGE_READWRITE|PAGE_GUARD -> OK Align=0x10000
//	Read $r 1 -> EXC 0x80000001 read $r
//	Read $r 1 -> OK data=00
//
// Of a reply only what is written is asserted; the notation is that of mm/win32/testdata/NOTATION.md. A line without an
// arrow must not fail. Where the lines go, in this process or to the ctl of a mount, is the player's business: this package
// imports nothing of ours.
package dialogue

import (
	"fmt"
	"regexp"
	"strings"
)

// Scenario is a dialogue that starts in a process of its own.
type Scenario struct {
	Name  string // empty for lines before any header
	Tags  map[string]string
	Lines []Line
}

// Line is one line of a scenario.
type Line struct {
	Number int // in its file, from 1
	Text   string
}

var (
	header = regexp.MustCompile(`^#\s*scenario:\s*(\S+)(.*)`)
	tag    = regexp.MustCompile(`\[([a-z-]+)(?:[=:] ?([^]]*))?\]`)
)

// Parse splits a text into its scenarios. Empty lines and comments say nothing.
func Parse(text string) (all []*Scenario) {
	var current *Scenario
	number := 0
	for line := range strings.Lines(text) {
		number++
		line = strings.TrimSpace(line)
		if h := header.FindStringSubmatch(line); h != nil {
			current = &Scenario{Name: h[1], Tags: make(map[string]string)}
			for _, m := range tag.FindAllStringSubmatch(h[2], -1) {
				current.Tags[m[1]] = m[2]
			}
			all = append(all, current)
			continue
		}
		if line == "" || line[0] == '#' {
			continue
		}
		if current == nil {
			current = &Scenario{Tags: make(map[string]string)}
			all = append(all, current)
		}
		current.Lines = append(current.Lines, Line{number, line})
	}
	return all
}

var (
	loop     = regexp.MustCompile(`^repeat (?:(\w+)=)?(\w+)(?:\.\.(\w+))?(?: step=(\w+))?:\s+(.*)`)
	variable = regexp.MustCompile(`\$\w+`)
)

// maxRepeats bounds a repeat.
const maxRepeats = 1 << 20

// expand calls f for each time that a line is to be done: once, unless it is a repeat, whose variable it replaces by its
// value.
func (p *Player) expand(text string, f func(string)) error {
	m := loop.FindStringSubmatch(text)
	if m == nil {
		f(text)
		return nil
	}
	bounds := []uint64{1, 0, 1} // from, to, step
	for i, s := range m[2:5] {
		if s == "" {
			continue
		}
		n, err := p.Number(s, nil)
		if err != nil {
			return err
		}
		switch {
		case i == 0 && m[3] == "":
			bounds[1] = n // repeat N:
		default:
			bounds[i] = n
		}
	}
	from, to, step := bounds[0], bounds[1], bounds[2]
	if step == 0 || to >= from && (to-from)/step >= maxRepeats {
		return fmt.Errorf("repeats more than %d times", maxRepeats)
	}
	for i := from; i <= to; i += step {
		f(variable.ReplaceAllStringFunc(m[5], func(v string) string {
			if m[1] != "" && v == "$"+m[1] {
				return fmt.Sprintf("0x%x", i)
			}
			return v
		}))
		if i+step < i {
			break
		}
	}
	return nil
}

// SplitArrow cuts a line into the call and the reply that it must get; ok is false without an arrow.
func SplitArrow(line string) (call, want string, ok bool) {
	call, want, ok = strings.Cut(line, "->")
	return strings.TrimSpace(call), strings.TrimSpace(want), ok
}
