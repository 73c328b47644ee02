package process

import (
	"errors"
	"strings"
	"testing"
)

// +checklocksignore
func miscount(p *Process, _ *vad) { p.virtual++ }

// TestCheckFinds damages one thing at a time: a check that finds nothing proves nothing.
//
// +checklocksignore
func TestCheckFinds(t *testing.T) {
	for _, c := range []struct {
		damage string
		do     func(p *Process, v *vad)
		want   string
	}{
		{"nothing", func(*Process, *vad) {}, ""},
		{"a page is committed twice", func(p *Process, v *vad) { v.runs[0].attr = attr{committed: true} }, "the memory manager has"},
		{"a reserved page is protected", func(p *Process, v *vad) { v.runs[0].protection = ReadOnly }, "with a protection"},
		{"runs are alike", func(p *Process, v *vad) { v.runs[1].attr = v.runs[0].attr }, "are alike"},
		{"runs are mixed up", func(p *Process, v *vad) { v.runs[1].first = v.runs[2].first }, "out of order"},
		{"a run is lost", func(p *Process, v *vad) { v.runs = v.runs[1:] }, "do not begin"},
		{"an allocation grows", func(p *Process, v *vad) { v.last += 2 * slotPages }, "shares a slot"},
		{"an allocation moves", func(p *Process, v *vad) { p.high = 0x10000 }, "outside"},
		{"virtual size is miscounted", miscount, "counted"},
	} {
		m := NewMachine(newSystem(t, 64, 64), OptIn, Listener{})
		p, err := m.Start(Image{Arch: X64})
		is(t, "start", err, nil)
		is(t, "reserve", errOf(p.Alloc(0x40000000, 0x10000, MemReserve, ReadWrite)), nil)
		is(t, "reserve", errOf(p.Alloc(0x40010000, 0x10000, MemReserve, ReadWrite)), nil)
		is(t, "commit", errOf(p.Alloc(0x40001000, 0x2000, MemCommit, ReadWrite)), nil)
		c.do(p, p.find(0x40000))
		switch found := errors.Join(m.Check()...); {
		case c.want == "" && found != nil:
			t.Errorf("%s: found %v", c.damage, found)
		case c.want != "" && (found == nil || !strings.Contains(found.Error(), c.want)):
			t.Errorf("%s: found %v, want %q", c.damage, found, c.want)
		}
	}
}
