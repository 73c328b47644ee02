package ctl

import (
	"strconv"
	"strings"

	"memfs/mm"
	"memfs/mm/pfn"
	"memfs/mm/process"
)

// Steered is a file or a directory whose rule can be set. What is made in a directory inherits the directory's.
type Steered interface {
	// SetRule sets one part of the rule, named as its extended attribute is: priority, pin, noswap, workingset or protection.
	// It returns how many pages had to be read back for it.
	SetRule(name, value string) (read uint64, err error)
}

// The parts of a rule, as the extended attributes user.memfs.NAME keep them.
const (
	RulePriority = "priority" // 0 to 7; 5 is what pages have that nobody set
	RulePin      = "pin"      // 1 is yes, 0 is no
	RuleNoSwap   = "noswap"   // the same
	// RuleWorkingSet is how much of a file may be in memory: a number of bytes, 0 for as much as there is room for.
	RuleWorkingSet = "workingset"
	// RuleProtection is a PAGE_ constant; PAGE_EXECUTE_READWRITE is what files have that nobody protected.
	RuleProtection = "protection"
)

// ruleVerbs are the commands that set rules.
func ruleVerbs() []Verb[*Target] {
	return []Verb[*Target]{
		{Words: "pin", Run: rule(RulePin, "1"),
			Help: "keep the pages in memory and in the working set, as VirtualLock: half of memory at most"},
		{Words: "unpin", Run: rule(RulePin, "0"), Help: "undo pin"},
		{Words: "noswap", Run: rule(RuleNoSwap, "1"),
			Help: "keep the pages in memory: never in a page file; half of memory at most"},
		{Words: "swap", Run: rule(RuleNoSwap, "0"), Help: "undo noswap"},
		{Words: "workingset", Text: "SIZE", Launders: true, Run: setWorkingSet,
			Help: "keep SIZE of each file in memory at most, and as much in the host: its own oldest pages leave first; 0 is no limit"},
		{Words: "protect", Text: "PAGE_…", Launders: true, Run: setProtection,
			Help: "bound what may be done with the contents: PAGE_NOACCESS, PAGE_READONLY, … PAGE_EXECUTE_READWRITE"},
		{Words: "priority", Digit: pfn.Priorities, Run: setPriority,
			Help: "use standby list N, 0 to 7: the pages of a lower one are taken first; 5 is the usual one"},
	}
}

func setPriority(t *Target, a Args) ([]Tally, error) {
	return rule(RulePriority, strconv.Itoa(a.Number))(t, a)
}

func setWorkingSet(t *Target, a Args) ([]Tally, error) {
	n, err := parseSize(a.Text)
	if a.Text == "default" {
		n, err = 0, nil
	}
	if err != nil {
		return nil, invalid("workingset: %s is not a number of bytes below 8 EiB: write it as 16M or 65536, or 0 for no limit", quote(a.Text))
	}
	if _, err := rule(RuleWorkingSet, strconv.FormatInt(n, 10))(t, a); err != nil {
		return nil, err
	}
	return t.each([]Tally{{Name: "trimmed"}, {Name: "evicted"}}, func(f File, moved []Tally) error {
		trimmed, evicted, err := f.Bound()
		moved[0].N += trimmed
		moved[1].N += evicted
		return err
	})
}

func setProtection(t *Target, a Args) ([]Tally, error) {
	p, ok := process.ParseProtection(a.Text)
	if !ok || p != p.Base() {
		return nil, invalid("protect: %s is not a PAGE_ constant without modifiers, such as PAGE_READONLY", quote(a.Text))
	}
	tally, err := rule(RuleProtection, p.String())(t, a)
	return tally[1:], err // nothing is read back for it
}

// rule sets a part of the rule of every file, and of the directories that they are in.
func rule(name, value string) func(*Target, Args) ([]Tally, error) {
	return func(t *Target, _ Args) ([]Tally, error) {
		if t.Folders != nil {
			t.Folders(func(d Steered) { _, _ = d.SetRule(name, value) })
		}
		return t.each([]Tally{{Name: "read"}}, func(f File, moved []Tally) error {
			read, err := f.SetRule(name, value)
			moved[0].N += read
			return err
		})
	}
}

func discardFiles(t *Target, r Args) ([]Tally, error) {
	return t.each([]Tally{{Name: "discarded"}}, func(f File, moved []Tally) error {
		before := f.Blocks()
		err := f.Discard(r.Off, r.Len)
		moved[0].N += (before - min(before, f.Blocks())) / blocksPerPage
		return err
	})
}

// blocksPerPage is how many of st_blocks' units a page has.
const blocksPerPage = 8

func combine(m *Mount, _ Args) ([]Tally, error) {
	c, err := m.Combine()
	return []Tally{{"combined", c.Joined}, {"freed", c.Freed}, {"slots", c.Slots}, {"saved", (c.Freed + c.Slots) * mm.PageSize},
		{"scanned", c.Scanned}}, err
}

// offerFiles lets pages be lost before all others: they wait on the lowest standby list.
func offerFiles(t *Target, r Args) ([]Tally, error) {
	return t.each([]Tally{{Name: "offered"}}, func(f File, moved []Tally) error {
		n, err := f.Offer(r.Off, r.Len, 0)
		moved[0].N += n
		return err
	})
}

func reclaimFiles(t *Target, r Args) ([]Tally, error) {
	return t.each([]Tally{{Name: "reclaimed"}, {Name: "lost"}}, func(f File, moved []Tally) error {
		o := f.Reclaim(r.Off, r.Len)
		moved[0].N += o.Reclaimed
		moved[1].N += o.Lost
		return nil
	})
}

// setSystemCache bounds the system cache's working set.
func setSystemCache(m *Mount, a Args) ([]Tally, error) {
	words := strings.Fields(a.Text)
	var c mm.CacheLimits
	if len(words) == 3 && (words[2] == "hard" || words[2] == "soft") {
		c.Hard, words = words[2] == "hard", words[:2]
	}
	if len(words) != 2 {
		return nil, invalid("systemcache wants MIN and MAX, and hard or soft if you like, not %s", quote(a.Text))
	}
	for i, into := range []*uint64{&c.Min, &c.Max} {
		n, err := parseSize(words[i])
		if err != nil {
			return nil, invalid("systemcache: %s is not a number of bytes: write it as 16M or 65536", quote(words[i]))
		}
		*into = (uint64(n) + mm.PageSize - 1) / mm.PageSize
	}
	trimmed, err := m.SetSystemCache(c)
	return []Tally{{"trimmed", trimmed}}, err
}
