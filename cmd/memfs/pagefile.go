package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"memfs/mm"
	"memfs/mm/store"
)

// pageFileSpec is what the command line says of the page file.
type pageFileSpec struct {
	none     bool
	path     string // "": the default place
	min, max uint64 // bytes; 0: as usual
	priority int    // those of the highest are filled first
}

// mostPriority is the highest priority of a page file, as of swapon(8).
const mostPriority = 32767

// parsePageFile takes none, or PATH, size=SIZES and prio=N with commas between them, each of which may be left out.
func parsePageFile(text string, ram uint64) (spec pageFileSpec, err error) {
	if text == "none" {
		return pageFileSpec{none: true}, nil
	}
	for i, part := range strings.Split(text, ",") {
		key, value, isOption := strings.Cut(part, "=")
		switch {
		case isOption && key == "size":
			if spec.min, spec.max, err = parseRange(value, ram); err != nil {
				return spec, err
			}
		case isOption && key == "prio":
			if spec.priority, err = strconv.Atoi(value); err != nil || spec.priority < 0 || spec.priority > mostPriority {
				return spec, fmt.Errorf("prio=%s is no priority: write a number from 0 to %d; the highest is filled first", value, mostPriority)
			}
		case i == 0 && part != "" && part != "none":
			spec.path = part
		default:
			return spec, fmt.Errorf("%q is unknown: write PATH, PATH,size=MAX, size=MIN-MAX, with prio=N if you like, or none", part)
		}
	}
	return spec, nil
}

// parseRange takes MAX or MIN-MAX.
func parseRange(text string, ram uint64) (low, high uint64, err error) {
	from, to, isRange := strings.Cut(text, "-")
	if isRange {
		if low, err = parseSize(from, ram); err != nil {
			return 0, 0, err
		}
	} else {
		to = text
	}
	if high, err = parseSize(to, ram); err != nil {
		return 0, 0, err
	}
	if high < mm.PageSize {
		return 0, 0, errors.New("a page file has at least one page of 4096 bytes")
	}
	if low > high {
		return 0, 0, errors.New("MIN is above MAX")
	}
	return low, high, nil
}

// mostPageFiles is how many there may be from the start.
const mostPageFiles = 32

// combinePageFiles is what --pagefile, which may be given several times, and --pagefile-size come to: the first page file,
// and the others.
func combinePageFiles(texts []string, sizes string, ram uint64) (first pageFileSpec, more []pageFileSpec, err error) {
	if len(texts) > mostPageFiles {
		return first, nil, usageError("--pagefile is given %d times: at most %d", len(texts), mostPageFiles)
	}
	if len(texts) > 1 {
		for _, text := range texts {
			spec, err := parsePageFile(text, ram)
			if err != nil {
				return first, nil, usageError("--pagefile %q: %v", text, err)
			}
			if spec.none {
				return first, nil, usageError("--pagefile none contradicts the other --pagefile")
			}
			if sizes != "" && spec.max == 0 {
				if spec.min, spec.max, err = parseRange(sizes, ram); err != nil {
					return first, nil, usageError("--pagefile-size %q: %v", sizes, err)
				}
			}
			more = append(more, spec)
		}
		return more[0], more[1:], nil
	}
	first, err = combinePageFile(texts, sizes, ram)
	return first, nil, err
}

// combinePageFile is combinePageFiles for one.
func combinePageFile(specs []string, sizes string, ram uint64) (spec pageFileSpec, err error) {
	for _, text := range specs {
		if spec, err = parsePageFile(text, ram); err != nil {
			return spec, usageError("--pagefile %q: %v", text, err)
		}
	}
	if sizes == "" {
		return spec, nil
	}
	if spec.none || spec.max != 0 {
		return spec, usageError("--pagefile-size %s contradicts --pagefile %s", sizes, specs[0])
	}
	if spec.min, spec.max, err = parseRange(sizes, ram); err != nil {
		return spec, usageError("--pagefile-size %q: %v", sizes, err)
	}
	return spec, nil
}

// pageFileFactor is how many times the memory a page file has by default.
const pageFileFactor = 32

// openedPageFile is a page file and what there is to say about it.
type openedPageFile struct {
	*store.File
	min, max uint64 // slots
	priority int
	warnings []string
}

// openPageFile makes the page file, of least bytes at most if its maximum is not given. The error says what would do.
func openPageFile(spec pageFileSpec, memory, least uint64) (*openedPageFile, error) {
	place := spec.path
	if place == "" {
		place = defaultPlace()
	}
	file, err := store.OpenFile(place)
	switch {
	case errors.Is(err, unix.EEXIST):
		return nil, fmt.Errorf("page file %s: there is such a file already; name a new one, or a directory", place)
	case errors.Is(err, unix.ENOENT) && !isDirectory(filepath.Dir(place)):
		return nil, fmt.Errorf("page file %s: no such directory; make it, or name another place with --pagefile PATH",
			filepath.Dir(place))
	case err != nil:
		return nil, fmt.Errorf("page file %s: %s; name a place that can be written with --pagefile PATH, or use --pagefile none",
			place, reason(err))
	}
	p := &openedPageFile{File: file, min: spec.min / mm.PageSize, priority: spec.priority}
	if err := p.limit(spec, memory, least); err != nil {
		return nil, errors.Join(err, file.Close())
	}
	dir := filepath.Dir(file.Name())
	warn := func(what string) { p.warnings = append(p.warnings, fmt.Sprintf("page file in %s: %s", dir, what)) }
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err == nil && (st.Type == unix.TMPFS_MAGIC || st.Type == unix.RAMFS_MAGIC) {
		warn("that is memory itself, outside the budget; a place on a disk would be better")
	} else if !file.Direct() {
		warn("no direct I/O there, so the host may cache some of it besides")
	}
	if !file.Reserves() {
		warn("space cannot be reserved there; data is lost if the disk fills up")
	}
	return p, nil
}

func isDirectory(path string) bool {
	info, err := os.Stat(path)
	return err == nil && info.IsDir()
}

// limit settles how large the file may get, and reserves what it has from the start.
func (p *openedPageFile) limit(spec pageFileSpec, memory, least uint64) error {
	dir := filepath.Dir(p.Name())
	free, err := store.FreeSpace(dir)
	if err != nil {
		return err
	}
	limit := spec.max
	switch {
	case limit == 0 && least > free:
		return fmt.Errorf("page file in %s: --size needs %s of it, besides the memory, and %s are free there; "+
			"give less, more memory, or another place with --pagefile PATH", dir, roundSize(least), roundSize(free))
	case limit == 0:
		limit = max(min(pageFileFactor*memory, free/2), least)
		if limit < mm.PageSize {
			return fmt.Errorf("page file in %s: no space left there; name another place with --pagefile PATH, "+
				"or use --pagefile none", dir)
		}
	case limit > free:
		return fmt.Errorf("page file in %s: %s were asked for and %s are free there; give less, "+
			"or another place with --pagefile PATH", dir, roundSize(limit), roundSize(free))
	}
	p.max = limit / mm.PageSize
	// One slot shows whether space can be reserved at all.
	if err := p.Grow(max(1, spec.min/mm.PageSize)); err != nil {
		return fmt.Errorf("page file in %s: %s cannot be reserved: %v; give less, or another place with --pagefile PATH",
			dir, roundSize(max(mm.PageSize, spec.min)), errors.Unwrap(err))
	}
	return nil
}

// defaultPlace is the directory for page files of who names none.
func defaultPlace() string {
	if os.Geteuid() != 0 {
		cache, err := os.UserCacheDir()
		if err == nil && os.MkdirAll(cache, 0o700) == nil && unix.Access(cache, unix.W_OK) == nil {
			return cache
		}
	}
	return "/var/tmp"
}
