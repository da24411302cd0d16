// Vectors split into values of RUN elements, numbered one vector after the other.

struct Place {
    there: bool,
    vector: u32,
    // Of the value's first element in the vector.
    at: u32,
}

fn place_of(rows: Rows, index: u32) -> Place {
    let each = rows.len / RUN;
    // dense operands are one vector: nothing to divide
    if rows.outer * rows.inner == 1u {
        return Place(index < each, 0u, index * RUN);
    }
    let vector = index / max(each, 1u);
    return Place(vector < rows.outer * rows.inner, vector, (index - vector * each) * RUN);
}
