package main

import (
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"sync"

	"golang.org/x/sys/unix"

	"memfs/mm"
	"memfs/mm/store"
)

// pageFileSet is the page files of a session, those that have left again among them.
type pageFileSet struct {
	mu sync.Mutex
	// +checklocks:mu
	files []*openedPageFile
	// +checklocks:mu
	flaky []*store.Flaky // what they are wrapped in on a mount made with --inject
	// +checklocks:mu
	faults []store.Fault
}

// close closes all of them.
func (p *pageFileSet) close() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, f := range p.files {
		f.Close()
	}
	p.files = nil
}

// in is those that are in use.
func (p *pageFileSet) in(use []mm.PageFileInfo) (files []*openedPageFile) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, u := range use {
		for _, f := range p.files {
			if f.Name() == u.Name {
				files = append(files, f)
			}
		}
	}
	return files
}

// noFaults is what --inject takes for none yet.
const noFaults = "none"

func parseFaults(spec string) (seed uint64, faults []store.Fault, err error) {
	if spec == noFaults || spec == "" {
		return 0, nil, nil
	}
	return store.ParseFaults(spec)
}

// add notes a page file; with inject it is wrapped in what makes it fail, as the others are.
func (p *pageFileSet) add(f *openedPageFile, inject string) (mm.Store, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if inject == "" {
		p.files = append(p.files, f)
		return f.File, nil
	}
	seed, faults, err := parseFaults(inject)
	if err != nil {
		return nil, err
	}
	if p.flaky == nil {
		p.faults = faults
	}
	p.files = append(p.files, f)
	p.flaky = append(p.flaky, store.NewFlaky(f, seed+uint64(len(p.flaky)), p.faults...))
	return p.flaky[len(p.flaky)-1], nil
}

// injector is the command inject; nil if it may not be given.
func (p *pageFileSet) injector(may bool) func(string) (uint64, error) {
	if !may {
		return nil
	}
	return func(spec string) (injected uint64, err error) {
		_, faults, err := parseFaults(spec)
		if err != nil {
			return 0, err
		}
		p.mu.Lock()
		defer p.mu.Unlock()
		p.faults = faults
		for _, f := range p.flaky {
			injected += f.Injected()
			f.SetFaults(faults...)
		}
		return injected, nil
	}
}

// openPageFile makes a page file, of least bytes at most if its maximum is not given.
func (s *session) openPageFile(spec pageFileSpec, memory, least uint64) (c mm.PageFileConfig, err error) {
	file, err := openPageFile(spec, memory, least)
	if err != nil {
		return c, err
	}
	for _, w := range file.warnings {
		s.warn("%s", w)
	}
	pages, err := s.pages.add(file, s.o.inject)
	if err != nil {
		return c, errors.Join(err, file.Close())
	}
	return mm.PageFileConfig{Name: file.Name(), Store: pages, Max: file.max, Min: file.min, Priority: file.priority}, nil
}

// addPageFile makes a page file for a live mount. What is said of a path means the daemon's place: it has to be absolute.
func (s *session) addPageFile(text string) (c mm.PageFileConfig, err error) {
	spec, err := parsePageFile(text, ramBytes())
	switch {
	case err != nil:
		return c, fmt.Errorf("pagefile add: %w", err)
	case spec.none:
		return c, errors.New("pagefile add: none is no page file")
	case !strings.HasPrefix(spec.path, "/"):
		return c, fmt.Errorf("pagefile add: name a new file or a directory by its whole path, as /var/tmp; not %q", spec.path)
	case s.onMount(spec.path):
		return c, fmt.Errorf("pagefile add: %s is on this mount itself; name a place on a disk", spec.path)
	}
	if c, err = s.openPageFile(spec, s.sys.Budget().Memory, 0); err == nil {
		s.log.Infof("%s: page file %s, at most %s, priority %d", s.place, c.Name, roundSize(c.Max*mm.PageSize), c.Priority)
	}
	return c, err
}

// onMount says whether a path leads into the session's own mount, where no page file of it can be.
func (s *session) onMount(path string) bool {
	table, err := mountTable()
	if err != nil {
		return false
	}
	m, found := topMount(table, s.place)
	var st unix.Stat_t
	if !isDirectory(path) {
		path = filepath.Dir(path)
	}
	return found && unix.Stat(path, &st) == nil && fmt.Sprintf("%d:%d", unix.Major(st.Dev), unix.Minor(st.Dev)) == m.device
}
