package mm

import (
	"bytes"
	"errors"
	"strings"
	"testing"

	"memfs/mm/store"
)

// TestCheckFinds damages one structure at a time and expects Check to say so: a check that finds nothing proves nothing.
//
// +checklocksignore
func TestCheckFinds(t *testing.T) {
	for _, c := range []struct {
		damage string
		do     func(s *System, l *leaf)
		want   string
	}{
		{"nothing", func(*System, *leaf) {}, ""},
		{"a slot in use is freed", func(s *System, l *leaf) { s.files.at(0).free(s.rec.word(l, 1).location().slot()) }, "but is free"},
		{"a slot is taken and lost", func(s *System, l *leaf) { s.files.at(0).alloc(1) }, "slots are used"},
		{"two pages own a slot", func(s *System, l *leaf) { s.rec.set(l, 2, s.rec.word(l, 1)) }, "belongs to two pages"},
		{"a page points at another's frame", func(s *System, l *leaf) { s.rec.set(l, 1, s.rec.word(l, 0)) }, "belongs to another page"},
		{"a page forgets its frame", func(s *System, l *leaf) { s.rec.set(l, 0, committed) }, "does not point back"},
		{"a valid page is called transition", func(s *System, l *leaf) {
			s.rec.set(l, 0, transitionPTE(s.rec.word(l, 0).frame()))
		}, "PTE kind"},
		{"a frame that does not exist", func(s *System, l *leaf) { s.rec.set(l, 0, validPTE(1<<30)) }, "does not exist"},
		{"the host's pages are miscounted", func(s *System, l *leaf) { s.tallies[0].hostPages++ }, "counted"},
		{"parts have more room than there is", func(s *System, l *leaf) { s.tallies[2].room = 64 }, "before anybody looks"},
		{"a view drops off the queue", func(s *System, l *leaf) { s.cache.head = 0 }, "mapped views"},
		{"a word is miscounted", func(s *System, l *leaf) { l.live++ }, "live words"},
		{"a page is never charged", func(s *System, l *leaf) { s.rec.set(l, 50, committed) }, "attached"},
		{"commit is given back twice", func(s *System, l *leaf) { s.commit.uncharge(1, true) }, "attached"},
		{"commit is attached twice", func(s *System, l *leaf) { s.commit.attach(1) }, "attached"},
	} {
		b := Budget{Memory: 16 << 20, Frames: 32, HostBytes: 64 * PageSize, PageFile: 64, CommitLimit: 90}
		s, err := NewFromBudget(b, Config{PageFiles: []PageFileConfig{{Name: "test", Store: store.NewMem(), Max: 64}}})
		if err != nil {
			t.Fatal(err)
		}
		g := s.NewSegment(noHost{})
		// Pages 1 to 63 paged, page 0 active.
		if err := g.Write(PageSize, bytes.Repeat([]byte{1}, 20*PageSize)); err != nil {
			t.Fatal(err)
		}
		if _, err := g.Trim(); err != nil {
			t.Fatal(err)
		}
		if _, err := s.FlushModified(); err != nil {
			t.Fatal(err)
		}
		s.EmptyStandby()
		if err := g.Write(0, []byte("active")); err != nil {
			t.Fatal(err)
		}
		if err := g.growLeaf(1, 3); err != nil {
			t.Fatal(err)
		}
		s.pfn.Lock()
		c.do(s, s.rec.leaves.At(1))
		s.pfn.Unlock()
		switch found := errors.Join(s.Check()...); {
		case c.want == "" && found != nil:
			t.Errorf("%s: found %v", c.damage, found)
		case c.want != "" && (found == nil || !strings.Contains(found.Error(), c.want)):
			t.Errorf("%s: found %v, want %q", c.damage, found, c.want)
		}
	}
}
