package ctl

import (
	"path/filepath"
	"strconv"
	"strings"
	"syscall"

	"memfs/mm"
)

// pageFileVerbs are the commands of .proc/ctl that are about page files.
func pageFileVerbs() []Verb[*Mount] {
	return []Verb[*Mount]{
		{Words: "pagefile add", Text: "PATH[,size=MIN-MAX][,prio=N]", Trusted: true, Run: addPageFile,
			Help: "have pages go to one more page file, as if mounted with it; the highest priority is filled first"},
		{Words: "pagefile remove", Text: "NUMBER|PATH", Launders: true, Run: removePageFile,
			Help: "bring the pages of a page file to the others or to memory, and close it"},
		{Words: "inject", Text: "FAULTS", Run: inject,
			Help: "make page files fail, as read=EIO rate=0.01; none stops it; for mounts made with --inject"},
	}
}

func addPageFile(m *Mount, a Args) ([]Tally, error) {
	if m.OpenPageFile == nil {
		return nil, &refusal{syscall.EOPNOTSUPP, "page files cannot be added to this mount"}
	}
	c, err := m.OpenPageFile(a.Text)
	if err != nil {
		return nil, &refusal{syscall.EINVAL, err.Error()}
	}
	n, err := m.AddPageFile(c)
	if err != nil {
		_ = c.Store.Close()
		return nil, err
	}
	return []Tally{{"number", uint64(n)}, {"max", c.Max * mm.PageSize}, {"limit", m.Snapshot().CommitLimit * mm.PageSize}}, nil
}

func removePageFile(m *Mount, a Args) ([]Tally, error) {
	n, err := findPageFile(m.Snapshot().PageFiles, a.Text)
	if err != nil {
		return nil, err
	}
	moved, err := m.RemovePageFile(n)
	tally := []Tally{{"moved", moved}}
	if err != nil {
		return tally, err
	}
	return append(tally, Tally{"limit", m.Snapshot().CommitLimit * mm.PageSize}), nil
}

// findPageFile is the number of the page file that a text names: by number, by the path that .proc/pagefiles shows, or by
// the directory that it alone is in.
func findPageFile(files []mm.PageFileInfo, name string) (int, error) {
	if n, err := strconv.Atoi(name); err == nil {
		return n, nil
	}
	var in []int
	for _, f := range files {
		if f.Name == name {
			return f.Number, nil
		}
		if filepath.Dir(f.Name) == filepath.Clean(name) {
			in = append(in, f.Number)
		}
	}
	if len(in) == 1 {
		return in[0], nil
	}
	return 0, invalid("pagefile remove %s: no page file has that name; .proc/pagefiles has their numbers and names", quote(name))
}

// inject sets what fails. Blanks stand for the commas of --inject, so that both can be written.
func inject(m *Mount, a Args) ([]Tally, error) {
	if m.Inject == nil {
		return nil, &refusal{syscall.EPERM, "nothing may be made to fail on this mount: it was not made with --inject"}
	}
	spec := strings.ReplaceAll(strings.Join(strings.FieldsFunc(a.Text, func(r rune) bool { return r == ' ' || r == ',' }), ","), ";,", ";")
	if spec == "none" || spec == "off" {
		spec = ""
	}
	before, err := m.Inject(spec)
	if err != nil {
		return nil, invalid("inject: %v", err)
	}
	return []Tally{{"injected", before}}, nil
}
